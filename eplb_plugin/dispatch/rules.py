"""Which replica a token goes to: the reference of every dispatch. Planner, tables and kernels must mirror it.

hash     vLLM's own: replica number (token_index · 2654435769 mod 2³²) mod count, replicas in slot order.
nearest  one fixed replica per (source rank, expert): on the source's rank, else on its node, else anywhere; among
         equally near ones the one that serves the fewest source ranks so far, so that their shares stay even; then the
         next node from number (logical id mod nodes) on; then slot order.
weighted a row of slots per (source rank, expert), with repeats; the same hash picks the entry (`tables.py`).
cover    the token's experts together: few nodes, then replicas on them in proportion to their shares (`cover.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..jit import Array, kernel
from ..placement import Placement
from ..plan_types import Dispatch, Plan
from ..topology import Topology
from .cover import cover_maps, route_cover
from .tables import weighted_tables

HASH_MULTIPLIER = 2654435769
HASH_MASK = 0xFFFFFFFF
RULES: tuple[str, ...] = get_args(Dispatch)


def checked_rule(rule: str) -> Dispatch:
    """The rule itself, or PluginError if it is unknown."""
    if rule not in RULES:
        raise mismatch("dispatch", found=repr(rule), expected=f"one of {', '.join(RULES)}", fix="name a known rule")
    return rule  # type: ignore[return-value]


def route(
    topk_ids: ArrayLike,
    source_rank: ArrayLike,
    plan: Plan,
    layer: int,
    rule: Dispatch | None = None,
    *,
    token_index: ArrayLike | None = None,
) -> NDArray[np.int32]:
    """Physical expert of every selection: [T, k] int32, -1 where `topk_ids` is -1.

    topk_ids: [T, k] logical ids, -1 = padding; source_rank: [T] rank that holds the token, or one rank for all;
    layer: row of the plan's placement; rule: default the plan's own;
    token_index: [T] position in the source rank's forward batch; default: running position per source rank.
    """
    rule = checked_rule(plan.dispatch if rule is None else rule)
    placement, topology = plan.placement, plan.topology
    ids, sources = checked_tokens(topk_ids, source_rank, plan, layer)
    if rule == "nearest":
        return _look_up(ids, sources, nearest_table(placement, topology, layer))
    index = running_position(sources, topology.num_ranks) if token_index is None else _checked_index(token_index, ids)
    if rule == "cover":
        maps = cover_maps(plan, [layer])
        return route_cover(ids, sources, index, topology.node_of_rank, maps.nodes[0], maps.counts[0], maps.copies[0])
    hashed = (index.astype(np.uint64) * np.uint64(HASH_MULTIPLIER) & np.uint64(HASH_MASK)).astype(np.int64)
    if rule == "weighted":
        return _hash_rows(ids, sources, hashed, weighted_tables(plan, layers=[layer])[:, 0])
    return _hash_slots(ids, hashed, placement.log2phy[layer], placement.replica_count[layer])


def replica_weights(
    placement: Placement, topology: Topology, rule: Dispatch, layers: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """[L, P] share of its expert's tokens that a slot serves when tokens come evenly from all ranks.

    Where replicas have shares of their own: as if those were equal. layers: whose shares are asked for;
    under `nearest`, where each costs time, those of the others are 0.
    """
    if checked_rule(rule) != "nearest":
        return 1.0 / np.take_along_axis(placement.replica_count, placement.phy2log.astype(np.int64), axis=1)
    ranks = topology.num_ranks
    shares = np.zeros(placement.phy2log.shape, np.float64)
    for layer in range(placement.num_layers) if layers is None else layers:
        table = nearest_table(placement, topology, layer)
        shares[layer] = np.bincount(table.ravel(), minlength=placement.num_slots) / ranks
    return shares


def nearest_table(placement: Placement, topology: Topology, layer: int) -> NDArray[np.int32]:
    """[ranks, E] int32: the slot that a source rank uses for an expert under `nearest`."""
    table = np.empty((topology.num_ranks, placement.num_experts), np.int32)
    counts = placement.replica_count[layer]
    _fill_nearest(placement.log2phy[layer], counts, topology.node_of_rank, topology.slots_per_rank, table)
    return table


def running_position(source_rank: NDArray[np.int32], num_ranks: int) -> NDArray[np.int64]:
    """[T] int64: how many earlier tokens have the same source rank."""
    return _running_position(source_rank, num_ranks)


def checked_tokens(
    topk_ids: ArrayLike, source_rank: ArrayLike, plan: Plan, layer: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids [T, k] and the rank of every token [T], as int32. Raises PluginError if they do not fit the plan."""
    layers, experts, ranks = plan.placement.num_layers, plan.placement.num_experts, plan.topology.num_ranks
    if not -layers <= layer < layers:
        raise mismatch("layer", found=layer, expected=f"0..{layers - 1}", fix="pass a row of the plan")
    ids = np.asarray(topk_ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        found = f"shape {ids.shape} {ids.dtype}"
        raise mismatch("topk_ids", found=found, expected="integers [tokens, k]", fix="pass one row per token")
    if ids.size and (ids.min() < -1 or ids.max() >= experts):
        found = f"ids {ids.min()}..{ids.max()}"
        raise mismatch("topk_ids", found=found, expected=f"-1..{experts - 1}", fix="pass logical ids")
    sources = np.asarray(source_rank)
    if sources.dtype.kind not in "iu" or sources.shape not in ((), (len(ids),)):
        found = f"shape {sources.shape} {sources.dtype}"
        raise mismatch("source_rank", found=found, expected=f"integers [{len(ids)}]", fix="pass one rank per token")
    if sources.size and (sources.min() < 0 or sources.max() >= ranks):
        found = f"{sources.min()}..{sources.max()}"
        raise mismatch("source_rank", found=found, expected=f"0..{ranks - 1}", fix="pass ranks of the topology")
    return ids.astype(np.int32), np.broadcast_to(sources, len(ids)).astype(np.int32)


def _checked_index(token_index: ArrayLike, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    index = np.asarray(token_index)
    if index.shape != (len(ids),) or index.dtype.kind not in "iu" or (index.size and index.min() < 0):
        raise PluginError(
            f"token_index: found shape {index.shape} {index.dtype}, expected [{len(ids)}] integers >= 0; "
            "fix: pass every token's position in its rank's batch"
        )
    return index.astype(np.int64)


@kernel
def _running_position(source_rank: Array, num_ranks: int) -> Array:
    seen = np.zeros(num_ranks, np.int64)
    position = np.empty(source_rank.shape[0], np.int64)
    for token in range(source_rank.shape[0]):
        position[token] = seen[source_rank[token]]
        seen[source_rank[token]] += 1
    return position


@kernel
def _hash_slots(ids: Array, hashed: Array, log2phy: Array, counts: Array) -> Array:
    slots = np.full(ids.shape, -1, np.int32)
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            expert = ids[token, k]
            if expert >= 0:
                slots[token, k] = log2phy[expert, hashed[token] % counts[expert]]
    return slots


@kernel
def _hash_rows(ids: Array, sources: Array, hashed: Array, tables: Array) -> Array:
    """tables: [ranks, E, width] of physical ids."""
    slots = np.full(ids.shape, -1, np.int32)
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[token, k] >= 0:
                slots[token, k] = tables[sources[token], ids[token, k], hashed[token] % tables.shape[2]]
    return slots


@kernel
def _look_up(ids: Array, sources: Array, table: Array) -> Array:
    slots = np.full(ids.shape, -1, np.int32)
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[token, k] >= 0:
                slots[token, k] = table[sources[token], ids[token, k]]
    return slots


@kernel
def _least_serving(replicas: Array, node_of_replica: Array, served: Array, first: int, nodes: int, only: int) -> int:
    """Replica with the fewest source ranks, on node `only` (-1: anywhere); ties: next node from `first` on, then slot.

    The planner counts replicas per node only; that ties go by node lets it foresee who serves whom.
    """
    best, best_turn = -1, 0
    for replica in range(replicas.shape[0]):
        if only >= 0 and node_of_replica[replica] != only:
            continue
        turn = (node_of_replica[replica] - first) % nodes
        if best < 0 or served[replica] < served[best] or (served[replica] == served[best] and turn < best_turn):
            best, best_turn = replica, turn
    return best


@kernel
def fill_nearest(replicas: Array, expert: int, node_of_rank: Array, slots_per_rank: int, line: Array) -> None:
    """replicas: an expert's slots, ascending -> line: [ranks], in place, the slot that each source rank uses for it."""
    ranks, nodes = node_of_rank.shape[0], np.max(node_of_rank) + 1
    line[:] = -1
    if replicas.shape[0] == 1:
        line[:] = replicas[0]
        return
    node_of_replica, served = node_of_rank[replicas // slots_per_rank], np.zeros(replicas.shape[0], np.int64)
    for replica in range(replicas.shape[0]):
        rank = replicas[replica] // slots_per_rank
        if line[rank] < 0:
            line[rank] = replicas[replica]
            served[replica] += 1
    for nearby in (True, False):  # first every rank that finds a replica on its node, then all others
        for rank in range(ranks):
            if line[rank] >= 0:
                continue
            only = node_of_rank[rank] if nearby else -1
            replica = _least_serving(replicas, node_of_replica, served, expert, nodes, only)
            if replica >= 0:
                line[rank] = replicas[replica]
                served[replica] += 1


@kernel
def _fill_nearest(log2phy: Array, counts: Array, node_of_rank: Array, slots_per_rank: int, table: Array) -> None:
    line = np.empty(table.shape[0], np.int32)
    for expert in range(counts.shape[0]):
        fill_nearest(log2phy[expert, : counts[expert]], expert, node_of_rank, slots_per_rank, line)
        table[:, expert] = line
