"""`route_step`: one step of all ranks' tokens under `exact`. The reference; engines compute the same from each rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import mismatch
from ...jit import Array, kernel
from ...plan_types import Dispatch, Plan
from ..cover import mixed, opened_nodes
from ..rules import checked_rule, checked_tokens, running_position
from .quotas import FINEST, bounds_above, solve
from .replicas import Replicas, replicas_of
from .rows import row_of_source


def route_step(
    topk_ids: ArrayLike,
    source_rank: ArrayLike,
    plan: Plan,
    layer: int,
    *,
    dispatch: Dispatch | None = None,
    tolerance: float = 0.0,
) -> NDArray[np.int32]:
    """Physical expert of every selection of one step: [T, k] int32, -1 where `topk_ids` is -1.

    topk_ids: [T, k] logical ids of all ranks' tokens in this step, -1 = padding; source_rank: [T] rank that owns the
    token; layer: row of the plan's placement.
    dispatch: whose wishes are kept where ranks stay even: under `cover` a token wishes for few nodes, under any other
    rule for its own node; default: the plan's.
    tolerance: share by which ranks may exceed the lightest busiest rank where that keeps wishes.

    Raises PluginError on input that does not fit together, on more nodes or replicas than `exact` can handle.
    """
    rule = checked_rule(plan.dispatch if dispatch is None else dispatch)
    ids, sources = checked_tokens(topk_ids, source_rank, plan, layer)
    replicas = replicas_of(plan.placement.phy2log[layer], plan.topology)
    wishes = wished_nodes(ids, sources, replicas, rule == "cover")
    counts, base = count_step(ids, sources, wishes, replicas)
    quota = solve_counts(replicas, counts, base, tolerance)
    return _send(ids, sources, wishes, replicas, _rows(replicas, counts, quota))


def fine_tolerance(tolerance: float) -> int:
    """The tolerance in whole parts, as all ranks and devices take it."""
    if not 0.0 <= tolerance <= 1.0:
        raise mismatch("tolerance", found=tolerance, expected="0.0..1.0", fix="pass a share")
    return round(tolerance * FINEST)


def solve_counts(replicas: Replicas, counts: Array, base: Array, tolerance: float = 0.0) -> Array:
    """[S] quotas from the counts of all sources (`count_step`)."""
    by_wish = counts.sum(axis=0, dtype=np.int32)
    wished, total = np.ascontiguousarray(by_wish[:, :-1]), by_wish.sum(axis=1, dtype=np.int32)
    return solve(replicas, wished, total, base, fine_tolerance(tolerance), bounds_above(replicas.colours))


def wished_nodes(ids: Array, sources: Array, replicas: Replicas, cover: bool) -> Array:
    """[T, k] int32 node that a selection would like to be served on; the number of nodes = anywhere."""
    if not cover:
        return _own_nodes(ids, sources, replicas, masks_of(replicas))
    index = running_position(sources, len(replicas.node_of_rank))
    return _covered_nodes(ids, sources, index, replicas, masks_of(replicas))


@kernel
def masks_of(replicas: Replicas) -> Array:
    """[E] int64: bit n = the expert has a replica on node n."""
    masks = np.zeros(replicas.row_of.shape[0], np.int64)
    for expert in range(masks.shape[0]):
        row = replicas.row_of[expert]
        if row < 0 and replicas.only_slot[expert] >= 0:
            masks[expert] = np.int64(1) << replicas.node_of_rank[replicas.only_slot[expert] // replicas.slots_per_rank]
        if row >= 0:
            for place in range(replicas.start[row], replicas.start[row + 1]):
                masks[expert] |= np.int64(1) << replicas.node[place]
    return masks


@kernel
def _own_nodes(ids: Array, sources: Array, replicas: Replicas, masks: Array) -> Array:
    wishes = np.full(ids.shape, replicas.node_of_rank.max() + 1, np.int32)
    for token in range(ids.shape[0]):
        own = replicas.node_of_rank[sources[token]]
        for k in range(ids.shape[1]):
            if ids[token, k] >= 0 and (masks[ids[token, k]] >> own) & 1:
                wishes[token, k] = own
    return wishes


@kernel
def _covered_nodes(ids: Array, sources: Array, index: Array, replicas: Replicas, masks: Array) -> Array:
    """Where an expert's replica costs no further copy of the token: its own node if it can be, else one that it visits
    anyway, drawn by a hash. Where it visits all nodes that hold the expert, it does not mind."""
    nodes = replicas.node_of_rank.max() + 1
    wishes = np.full(ids.shape, nodes, np.int32)
    for token in range(ids.shape[0]):
        own, key = replicas.node_of_rank[sources[token]], mixed(index[token], sources[token])
        needed = opened_nodes(ids[token], np.int64(1) << own, masks, key)
        for k in range(ids.shape[1]):
            expert = ids[token, k]
            if expert >= 0 and masks[expert] & ~needed:
                wishes[token, k] = wished_node(masks[expert] & needed, own, mixed(key, expert + nodes), nodes)
    return wishes


@kernel
def wished_node(allowed: int, own: int, drawn: int, nodes: int) -> int:
    """Own node if it is allowed, else the drawn one of those that are, else `nodes`: anywhere."""
    if (allowed >> own) & 1:
        return own
    count = 0
    for node in range(nodes):
        count += (allowed >> node) & 1
    turn = drawn * count >> 32
    for node in range(nodes):
        if (allowed >> node) & 1:
            if turn == 0:
                return node
            turn -= 1
    return nodes


@kernel
def count_step(ids: Array, sources: Array, wishes: Array, replicas: Replicas) -> tuple[Array, Array]:
    """-> counts: [ranks, M, nodes + 1] int32 selections of replicated experts by source and wish; base: [ranks] int32
    selections of experts that lie on one rank.
    """
    ranks, nodes = replicas.node_of_rank.shape[0], replicas.node_of_rank.max() + 1
    counts = np.zeros((ranks, replicas.expert.shape[0], nodes + 1), np.int32)
    base = np.zeros(ranks, np.int32)
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[token, k] < 0:
                continue
            row = replicas.row_of[ids[token, k]]
            if row < 0:
                base[replicas.only_slot[ids[token, k]] // replicas.slots_per_rank] += 1
            else:
                counts[sources[token], row, wishes[token, k]] += 1
    return counts, base


@kernel
def _rows(replicas: Replicas, counts: Array, quota: Array) -> Array:
    """[ranks, S, nodes + 1] of every source."""
    rows = np.empty((counts.shape[0], quota.shape[0], counts.shape[2]), np.int32)
    for source in range(counts.shape[0]):
        rows[source] = row_of_source(replicas, counts, quota, source)
    return rows


@kernel
def _send(ids: Array, sources: Array, wishes: Array, replicas: Replicas, rows: Array) -> Array:
    """The j-th selection of a source, expert and wish takes the first replica whose quotas add up to more than j."""
    slots = np.full(ids.shape, -1, np.int32)
    left = rows.copy()
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[token, k] < 0:
                continue
            row = replicas.row_of[ids[token, k]]
            if row < 0:
                slots[token, k] = replicas.only_slot[ids[token, k]]
                continue
            place = replicas.start[row]
            while left[sources[token], place, wishes[token, k]] == 0:
                place += 1
            left[sources[token], place, wishes[token, k]] -= 1
            slots[token, k] = replicas.slot[place]
    return slots
