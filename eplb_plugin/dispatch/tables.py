"""Fractional shares by tables alone: every source rank has its own row of physical ids per expert, ids repeated.

The engine's hash picks an entry by the token's position in its rank's batch, so a replica that stands in a quarter of
the entries serves a quarter of the tokens, without a new kernel. A row is short, but a node has as many rows as ranks,
and only their sum is what the shares say: ranks round differently, so that 72 of them express a twelfth, which 32
entries cannot. Rows are rotated, by rank and by expert: position 0 picks entry 0, and a batch of one token would
otherwise go to one replica only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch
from ..jit import Array, kernel
from ..plan_types import Plan

TABLE_WIDTH = 32  # entries of a row; a power of two, so that the hash visits all entries equally often
ROUNDING = 1e-9


def weighted_tables(
    plan: Plan, ranks: Sequence[int] | None = None, layers: Sequence[int] | None = None, *, width: int = TABLE_WIDTH,
    together: int = 1,
) -> NDArray[np.int32]:  # fmt: skip
    """[ranks, layers, E, width] int32 physical ids for `row[hash % width]`; default: all ranks, all layers.

    Made from the plan's source weights; a plan without them serves every source by `replica_weights`.
    together: ranks of a node that route the same token, and have the rows of the first of them.
    """
    if width < 1:
        raise mismatch("width", found=width, expected=">= 1", fix=f"leave it at {TABLE_WIDTH}")
    placement, topology = plan.placement, plan.topology
    chosen_ranks = _checked("ranks", ranks, topology.num_ranks)
    chosen_layers = _checked("layers", layers, placement.num_layers)
    shares = source_shares(plan)
    node_of_rank, turn_of_rank = topology.node_of_rank, _turn_within_node(topology.node_of_rank) // together
    lines = max(topology.ranks_per_node // together, 1)
    tables = np.empty((len(chosen_ranks), len(chosen_layers), placement.num_experts, width), np.int32)
    for column, layer in enumerate(chosen_layers):
        counts, replicas = placement.replica_count[layer], placement.log2phy[layer]
        for node in np.unique(node_of_rank[chosen_ranks]):
            of_node = [line for line, rank in enumerate(chosen_ranks) if node_of_rank[rank] == node]
            rows = rows_of_node(np.ascontiguousarray(shares[node, layer]), replicas, counts, width * lines)
            for line in of_node:
                turn = turn_of_rank[chosen_ranks[line]] % lines
                deal_rows(rows, turn, turn * width // lines, tables[line, column])
    return tables


def hashed_maps(
    plan: Plan, owners: Sequence[int], layers: Sequence[int] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """What an engine needs that takes entry `hash % count` of a row: [layers, E, entries] int32, [layers, E] counts.

    owners: the ranks that route the same token, one or more. All of them need the same rows, or a replica is computed
    twice or by nobody. A group that lies on several nodes is near to none, and serves by `replica_weights`.
    """
    chosen = _checked("layers", layers, plan.placement.num_layers)
    if plan.dispatch in ("hash", "cover"):  # cover has tables of its own: these only say where the replicas are
        return plan.placement.log2phy[chosen], plan.placement.replica_count[chosen].astype(np.int64)
    if plan.dispatch != "weighted":
        expected = "hash, weighted or cover"
        raise mismatch("dispatch", found=plan.dispatch, expected=expected, fix="plan for one of them")
    on_one_node = len(set(plan.topology.node_of_rank[list(owners)].tolist())) == 1
    used, together = (plan, len(owners)) if on_one_node else (replace(plan, source_weights=None), 1)
    tables = weighted_tables(used, owners[:1], chosen, together=together)[0]
    return tables, np.full(tables.shape[:2], tables.shape[2], np.int64)


def source_shares(plan: Plan) -> NDArray[np.float64]:
    """[nodes, L, P] share of a source node's tokens of an expert that a slot serves."""
    expected = (plan.topology.num_nodes, *plan.placement.phy2log.shape)
    if plan.source_weights is None:
        return np.broadcast_to(plan.replica_weights, expected)
    if plan.source_weights.shape != expected:
        found = f"shape {plan.source_weights.shape}"
        fix = "leave source_weights out, or plan again"
        raise mismatch("source_weights", found=found, expected=f"{expected}, nodes × layers × slots", fix=fix)
    return plan.source_weights


def _checked(name: str, chosen: Sequence[int] | None, count: int) -> list[int]:
    numbers = list(range(count)) if chosen is None else [int(number) for number in chosen]
    if any(not -count <= number < count for number in numbers):
        raise mismatch(name, found=numbers, expected=f"0..{count - 1}", fix="pass numbers of this plan")
    return numbers


def _turn_within_node(node_of_rank: NDArray[np.int32]) -> NDArray[np.int64]:
    """[ranks] int64: how many earlier ranks are on the same node."""
    earlier = np.tril(node_of_rank[:, None] == node_of_rank[None, :], k=-1)
    return np.count_nonzero(earlier, axis=1)


@kernel
def share_entries(shares: Array, width: int) -> Array:
    """shares: [replicas] >= 0 -> [replicas] int64 entries of a row, summing to `width`: largest remainders, then first.

    Shares that are all zero count as equal.
    """
    total = shares.sum()
    exact = shares / total * width if total > 0.0 else np.full(shares.shape[0], width / shares.shape[0])
    entries = np.floor(exact + ROUNDING).astype(np.int64)
    while entries.sum() < width:
        entries[np.argmax(exact - entries)] += 1
    return entries


@kernel
def rows_of_node(shares: Array, log2phy: Array, counts: Array, entries: int) -> Array:
    """shares: [P]; log2phy: [E, replicas]; counts: [E] -> [E, entries] int32, every replica's entries together.

    Consecutive positions step through a row by the multiplier modulo its width, far from each other; so entries of one
    replica may lie together, and eight tokens still take replicas about as the shares say.
    """
    rows = np.empty((counts.shape[0], entries), np.int32)
    for expert in range(counts.shape[0]):
        replicas = log2phy[expert, : counts[expert]]
        if replicas.shape[0] == 1:
            rows[expert] = replicas[0]
            continue
        shared, filled = share_entries(shares[replicas], entries), 0
        for replica in range(replicas.shape[0]):
            rows[expert, filled : filled + shared[replica]] = replicas[replica]
            filled += shared[replica]
    return rows


@kernel
def deal_rows(rows: Array, turn: int, start: int, table: Array) -> None:
    """rows: [E, n · width] of a node -> table [E, width] of one of its n ranks: every n-th entry, from `turn` on.

    Row e begins at entry `start` + a scramble of e.
    """
    width = table.shape[1]
    ranks = rows.shape[1] // width
    for expert in range(rows.shape[0]):
        offset = start + (((expert * 2654435769) & 0xFFFFFFFF) * width >> 32)
        for entry in range(width):
            table[expert, entry] = rows[expert, (entry + offset) % width * ranks + turn]
