"""What a placement offers to `exact` in one layer: the experts that lie on several ranks, in the order of a sweep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import mismatch
from ...jit import Array
from ...limits import MOST_NODES
from ...topology import Topology

MOST_REPLICAS = 16  # of one expert: a GPU's thread loops over them


class Replicas(NamedTuple):
    """M experts lie on two ranks or more; S replicas of theirs. All arrays int32.

    expert: [M] logical ids, colour after colour: experts of a colour share no rank, so that one GPU block balances them
    at once; colour_start: [colours + 1] into expert.
    start: [M + 1] into slot, rank, node: [S], an expert's replicas by node, then slot. A second slot of an expert on a
    rank is left out: it would make no rank lighter.
    row_of: [E] row of an expert in `expert`, -1 = it lies on one rank; only_slot: [E] its slot then, else -1.
    node_of_rank: [ranks]; slots_per_rank.
    """

    expert: Array
    colour_start: Array
    start: Array
    slot: Array
    rank: Array
    node: Array
    row_of: Array
    only_slot: Array
    node_of_rank: Array
    slots_per_rank: int

    @property
    def colours(self) -> int:
        return len(self.colour_start) - 1


def replicas_of(phy2log: ArrayLike, topology: Topology) -> Replicas:
    """phy2log: [P] of one layer. Raises PluginError beyond the limits."""
    if topology.num_nodes > MOST_NODES:
        expected = f"at most {MOST_NODES} for exact"
        raise mismatch("nodes", found=topology.num_nodes, expected=expected, fix="exact: null")
    experts = np.asarray(phy2log, np.int64)
    num_experts, held = int(experts.max()) + 1, _held(experts, topology)
    most = max(len(slots) for slots in held)
    if most > MOST_REPLICAS:
        expected = f"at most {MOST_REPLICAS} ranks that hold one expert, for exact"
        raise mismatch("replicas", found=most, expected=expected, fix="exact: null, or fewer redundant experts")
    colours = _colours(held, topology.slots_per_rank)
    order = [expert for colour in colours for expert in colour]
    slots = np.array([slot for expert in order for slot in held[expert]], np.int32)
    row_of, only_slot = np.full(num_experts, -1, np.int32), np.full(num_experts, -1, np.int32)
    row_of[order] = np.arange(len(order))
    for expert in range(num_experts):
        if len(held[expert]) == 1:
            only_slot[expert] = held[expert][0]
    return Replicas(
        np.array(order, np.int32),
        _starts([len(colour) for colour in colours]),
        _starts([len(held[expert]) for expert in order]),
        slots,
        topology.rank_of_slot[slots],
        topology.node_of_slot[slots],
        row_of,
        only_slot,
        topology.node_of_rank,
        topology.slots_per_rank,
    )


def refuse_crowds(before: NDArray[np.int32], after: NDArray[np.int32]) -> None:
    """before, after: [L, P] placements. Raises PluginError unless `replicas_of` takes every one on the way from one to
    the other, where a slot has either's expert, or for a while that of another slot that has lost it.
    """
    experts = int(max(before.max(), after.max())) + 1
    row = np.arange(len(before))[:, None] * experts
    most = int(np.bincount(np.concatenate([(row + before).ravel(), (row + after)[after != before]])).max())
    if most > MOST_REPLICAS:
        expected = f"at most {MOST_REPLICAS} slots of one expert, old and new ones, for exact"
        raise mismatch("replicas", found=most, expected=expected, fix="exact: null, or fewer redundant experts")


def _held(experts: NDArray[np.int64], topology: Topology) -> list[list[int]]:
    """Of every expert its slots, one on each rank, by node."""
    slots = np.lexsort((np.arange(len(experts)), topology.node_of_slot))
    held: list[list[int]] = [[] for _ in range(int(experts.max()) + 1)]
    ranks: list[set[int]] = [set() for _ in held]
    for slot in slots.tolist():
        expert, rank = int(experts[slot]), slot // topology.slots_per_rank
        if rank not in ranks[expert]:
            ranks[expert].add(rank)
            held[expert].append(slot)
    return held


def _colours(held: list[list[int]], slots_per_rank: int) -> list[list[int]]:
    """Greedily: an expert takes the first colour in which none shares a rank with it; who shares with most is first."""
    ranks = [{slot // slots_per_rank for slot in slots} for slots in held]
    replicated = [expert for expert, used in enumerate(ranks) if len(used) > 1]
    crowd = np.bincount([rank for expert in replicated for rank in ranks[expert]], minlength=1)
    replicated.sort(key=lambda expert: (-sum(crowd[rank] for rank in ranks[expert]), expert))
    colours: list[list[int]] = []
    taken: list[set[int]] = []
    for expert in replicated:
        colour = next((colour for colour, used in enumerate(taken) if not used & ranks[expert]), len(colours))
        if colour == len(colours):
            colours.append([])
            taken.append(set())
        colours[colour].append(expert)
        taken[colour] |= ranks[expert]
    return colours


def _starts(sizes: list[int]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
