"""`route_step`: one step of all ranks' tokens under `exact`. The reference; engines compute the same from each rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import mismatch
from ...jit import Array, kernel
from ...plan_types import Dispatch, Plan
from ..rules import checked_rule, checked_tokens, running_position
from .quotas import FINEST, bounds_above, solve
from .replicas import Replicas, replicas_of
from .rows import Seen, row_of_source
from .wishes import Wisher, masks_of, token_wishes


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
    quota = solve_counts(replicas, counts.sum(axis=0, dtype=np.int32), base, fine_tolerance(tolerance))
    return _send(ids, sources, wishes, replicas, _rows(replicas, counts, quota))


def fine_tolerance(tolerance: float) -> int:
    """The tolerance in whole parts, as all ranks and devices take it."""
    if not 0.0 <= tolerance <= 1.0:
        raise mismatch("tolerance", found=tolerance, expected="0.0..1.0", fix="pass a share")
    return round(tolerance * FINEST)


def solve_counts(replicas: Replicas, whole: Array, base: Array, tolerance: int = 0) -> Array:
    """[S] quotas. whole: [M, nodes + 1] int32, of all sources; base: as in `count_step`; tolerance: parts of FINEST."""
    wished, total = np.ascontiguousarray(whole[:, :-1]), whole.sum(axis=1, dtype=np.int32)
    return solve(replicas, wished, total, base, tolerance, bounds_above(replicas.colours))


def wished_nodes(ids: Array, sources: Array, replicas: Replicas, cover: bool) -> Array:
    """[T, k] int32 node that a selection would like to be served on; the number of nodes = anywhere."""
    index = running_position(sources, len(replicas.node_of_rank))
    return _wished_nodes(ids, sources, index, replicas, cover)


@kernel
def _wished_nodes(ids: Array, sources: Array, index: Array, replicas: Replicas, cover: bool) -> Array:
    wishes, masks, nodes = np.empty(ids.shape, np.int32), masks_of(replicas), replicas.node_of_rank.max() + 1
    for token in range(ids.shape[0]):
        held = np.int64(1) << replicas.node_of_rank[sources[token]]
        token_wishes(ids[token], index[token], Wisher(masks, held, sources[token], nodes, cover), wishes[token])
    return wishes


@kernel
def count_step(ids: Array, sources: Array, wishes: Array, replicas: Replicas) -> tuple[Array, Array]:
    """-> counts: [ranks, M, nodes + 1] int32 selections of replicated experts by source and wish; base: [ranks] int32
    selections of experts that lie on one rank.
    """
    ranks, nodes = replicas.node_of_rank.shape[0], replicas.node_of_rank.max() + 1
    counts = np.zeros((ranks, replicas.expert.shape[0], nodes + 1), np.int32)
    base = np.zeros(ranks, np.int32)
    for token in range(ids.shape[0]):
        count_token(ids[token], wishes[token], replicas, counts[sources[token]], base)
    return counts, base


@kernel
def count_token(row: Array, wishes: Array, replicas: Replicas, counts: Array, base: Array) -> None:
    """row, wishes: [k] of a token; counts: [M, nodes + 1] of its source."""
    for k in range(row.shape[0]):
        if row[k] < 0:
            continue
        place = replicas.row_of[row[k]]
        if place < 0:
            base[replicas.only_slot[row[k]] // replicas.slots_per_rank] += 1
        else:
            counts[place, wishes[k]] += 1


@kernel
def _rows(replicas: Replicas, counts: Array, quota: Array) -> Array:
    """[ranks, S, nodes + 1] of every source."""
    rows = np.empty((counts.shape[0], quota.shape[0], counts.shape[2]), np.int32)
    whole, source_of_rank = counts.sum(axis=0), np.arange(counts.shape[0], dtype=np.int32)
    earlier = np.zeros_like(whole)
    for source in range(counts.shape[0]):
        rows[source] = row_of_source(replicas, quota, Seen(counts, whole, earlier, source, source_of_rank))
        earlier += counts[source]
    return rows


@kernel
def _send(ids: Array, sources: Array, wishes: Array, replicas: Replicas, left: Array) -> Array:
    """left: the rows of all sources, which are used up."""
    slots = np.empty(ids.shape, np.int32)
    for token in range(ids.shape[0]):
        send_token(ids[token], wishes[token], replicas, left[sources[token]], slots[token])
    return slots


@kernel
def send_token(row: Array, wishes: Array, replicas: Replicas, left: Array, slots: Array) -> None:
    """The j-th selection of a source, expert and wish takes the first replica whose quotas add up to more than j.

    row, wishes: [k]; left: [S, nodes + 1], what earlier tokens of the source left of its row -> slots: [k], filled.
    """
    for k in range(row.shape[0]):
        slots[k] = -1
        if row[k] < 0:
            continue
        expert = replicas.row_of[row[k]]
        if expert < 0:
            slots[k] = replicas.only_slot[row[k]]
            continue
        place = replicas.start[expert]
        while left[place, wishes[k]] == 0:
            place += 1
        left[place, wishes[k]] -= 1
        slots[k] = replicas.slot[place]
