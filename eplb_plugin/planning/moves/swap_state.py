"""One layer's slots while pairs of them are swapped: what every rank holds and carries, and what moves have been spent.

Searches differ in what a swap is worth to them (`balance`, `locality`, `phases`); what a swap does and costs is here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..traffic.fixed_rules import Cluster
from ..traffic.node_visits import Visits, swap_experts
from .ranks import count_held, received, swap_held, swap_receipt


class SwapState(NamedTuple):
    """Arrays are brought up to date in place.

    phy2log: [P]
    slot_load: [W, P] of every phase of the traffic; one row where only the sum counts
    rank_load: [W, ranks]
    held: [ranks, E] replicas on every rank
    before: [ranks, E] the same when moves began to count
    moved: [1] moved slots so far
    budget: most moved slots
    cluster: ranks and nodes
    movable: [E] experts that may change node: those with one replica
    visits: which nodes tokens visit
    ingress: share by which a node's arrivals may exceed the mean before they have a price
    """

    phy2log: Array
    slot_load: Array
    rank_load: Array
    held: Array
    before: Array
    moved: Array
    budget: int
    cluster: Cluster
    movable: Array
    visits: Visits
    ingress: float


class SwapBounds(NamedTuple):
    """before, budget, ingress: see SwapState."""

    before: Array
    budget: int
    ingress: float


def open_swaps(
    phy2log: Array, slot_load: Array, cluster: Cluster, movable: Array, visits: Visits, bounds: SwapBounds
) -> SwapState:
    """phy2log: [P] and slot_load: [W, P] are changed in place by `swap`."""
    held = count_held(phy2log, cluster, len(movable))
    rank_load = _add_up(slot_load, cluster.slots_per_rank)
    moved = np.array([received(held, bounds.before)], np.int64)
    return SwapState(
        phy2log, slot_load, rank_load, held, bounds.before, moved, bounds.budget, cluster, movable, visits,
        float(bounds.ingress),
    )  # fmt: skip


def reopen_swaps(state: SwapState) -> SwapState:
    """Loads of ranks added up anew: the rounding of many swaps is not handed on."""
    return state._replace(rank_load=_add_up(state.slot_load, state.cluster.slots_per_rank))


@kernel
def _add_up(slot_load: Array, slots_per_rank: int) -> Array:
    rank_load = np.zeros((slot_load.shape[0], slot_load.shape[1] // slots_per_rank))
    for slot in range(slot_load.shape[1]):
        for phase in range(slot_load.shape[0]):
            rank_load[phase, slot // slots_per_rank] += slot_load[phase, slot]
    return rank_load


@kernel
def cost_of(state: SwapState, first: int, second: int) -> int:
    """Change of the moved slots if two slots exchange their experts."""
    slots = state.cluster.slots_per_rank
    return swap_receipt(
        state.held, state.before, first // slots, state.phy2log[first], second // slots, state.phy2log[second]
    )


@kernel
def is_affordable(state: SwapState, first: int, second: int) -> bool:
    return state.moved[0] + cost_of(state, first, second) <= state.budget


@kernel
def makes_twins(state: SwapState, first: int, second: int) -> bool:
    """Whether a rank would hold an expert twice."""
    slots = state.cluster.slots_per_rank
    mine, theirs = state.phy2log[first], state.phy2log[second]
    return bool(state.held[second // slots, mine] > 0 or state.held[first // slots, theirs] > 0)


@kernel
def swap(state: SwapState, first: int, second: int) -> None:
    """Two slots on different ranks exchange their experts."""
    slots, node_of_rank = state.cluster.slots_per_rank, state.cluster.node_of_rank
    rank, other, mine, theirs = first // slots, second // slots, state.phy2log[first], state.phy2log[second]
    state.moved[0] += cost_of(state, first, second)
    if node_of_rank[rank] != node_of_rank[other]:
        swap_experts(state.visits, mine, theirs)
    state.phy2log[first], state.phy2log[second] = theirs, mine
    for phase in range(state.slot_load.shape[0]):
        here, there = state.slot_load[phase, first], state.slot_load[phase, second]
        state.slot_load[phase, first], state.slot_load[phase, second] = there, here
        state.rank_load[phase, rank] -= here - there
        state.rank_load[phase, other] += here - there
    swap_held(state.held, rank, mine, other, theirs)
