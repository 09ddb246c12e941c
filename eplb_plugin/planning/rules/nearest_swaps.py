"""Lower the busiest rank under `nearest` by swaps of two slots, counted by the rule itself.

A copy serves whole source ranks, and whom it serves depends on where all others of its expert are. So a swap changes
the load of many ranks: it is tried, and taken back unless ranks are more even than before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...dispatch.rules import fill_nearest
from ...jit import Array, kernel

AIM = 0.003  # overload of a rank that is left alone
MAX_SWAPS = 300
TRIED = 24  # swaps of the busiest rank that promise most
LEAST = 1e-9  # by which the sum of squares must shrink, in mean loads


class Served(NamedTuple):
    """load: [E]; phy2log: [P]; served: [P] source ranks that a slot serves; rank_load: [ranks]; all kept up to date."""

    load: Array
    phy2log: Array
    node_of_rank: Array
    slots_per_rank: int
    served: Array
    rank_load: Array


@kernel
def level_nearest(load: Array, phy2log: Array, node_of_rank: Array, slots_per_rank: int) -> int:
    """load: [E]; phy2log: [P], in place; returns the number of swaps. No expert comes twice on a rank by it."""
    ranks = node_of_rank.shape[0]
    rank_load = np.zeros(ranks)
    state = Served(load, phy2log, node_of_rank, slots_per_rank, np.zeros(phy2log.shape[0], np.int64), rank_load)
    for expert in range(load.shape[0]):
        _serve(state, expert)
    mean, swaps, stuck = rank_load.mean(), 0, np.zeros(ranks, np.bool_)
    for _ in range(MAX_SWAPS):
        busiest = -1
        for rank in range(ranks):
            if not stuck[rank] and (busiest < 0 or rank_load[rank] > rank_load[busiest]):
                busiest = rank
        if busiest < 0 or rank_load[busiest] <= mean * (1.0 + AIM):
            break
        if _swap_best(state, busiest):
            stuck[:] = False
            swaps += 1
        else:
            stuck[busiest] = True
    return swaps


@kernel
def _serve(state: Served, expert: int) -> None:
    """Count anew whom an expert's copies serve, and what that means for the ranks."""
    copies, part = np.flatnonzero(state.phy2log == expert), state.load[expert] / state.node_of_rank.shape[0]
    line = np.empty(state.node_of_rank.shape[0], np.int32)
    fill_nearest(copies, expert, state.node_of_rank, state.slots_per_rank, line)
    for slot in copies:
        state.served[slot] = 0
    for slot in line:
        state.served[slot] += 1
    for slot in copies:
        state.rank_load[slot // state.slots_per_rank] += part * state.served[slot]


@kernel
def _exchange(state: Served, own: int, other: int) -> None:
    phy2log, ranks = state.phy2log, state.node_of_rank.shape[0]
    for slot in range(phy2log.shape[0]):
        if phy2log[slot] == phy2log[own] or phy2log[slot] == phy2log[other]:
            state.rank_load[slot // state.slots_per_rank] -= state.load[phy2log[slot]] / ranks * state.served[slot]
    phy2log[own], phy2log[other] = phy2log[other], phy2log[own]
    for slot in (own, other):
        _serve(state, phy2log[slot])


@kernel
def _holds(state: Served, rank: int, expert: int) -> bool:
    slots = state.slots_per_rank
    return bool((state.phy2log[rank * slots : (rank + 1) * slots] == expert).any())


@kernel
def _swap_best(state: Served, busiest: int) -> bool:
    """Try swaps in the order of what they promise if everybody went on to serve as many; keep the first that helps."""
    load, phy2log, rank_load, slots = state.load, state.phy2log, state.rank_load, state.slots_per_rank
    # the most promising swaps, by what both slots serve now
    top, ranks, mean = rank_load[busiest], state.node_of_rank.shape[0], rank_load.mean()
    promised, first, second = np.full(TRIED, top), np.full(TRIED, -1), np.full(TRIED, -1)
    for own in range(busiest * slots, (busiest + 1) * slots):
        mine = load[phy2log[own]] / ranks * state.served[own]
        for other in range(phy2log.shape[0]):
            rank, shift = other // slots, mine - load[phy2log[other]] / ranks * state.served[other]
            worst = np.argmax(promised)
            peak = max(top - shift, rank_load[rank] + shift)
            if rank == busiest or shift <= 0.0 or peak >= promised[worst]:
                continue
            if _holds(state, rank, phy2log[own]):
                continue
            if not _holds(state, busiest, phy2log[other]):
                promised[worst], first[worst], second[worst] = peak, own, other
    # each is tried by the rule itself, and taken back where it does not help
    before, squares = rank_load.max(), (rank_load**2).sum()
    for choice in np.argsort(promised):
        own, other = first[choice], second[choice]
        if own < 0:
            continue
        kept = rank_load.copy()
        _exchange(state, own, other)
        if rank_load.max() <= before * (1.0 + 1e-12) and (rank_load**2).sum() < squares - LEAST * mean * mean:
            return True
        _exchange(state, own, other)
        rank_load[:] = kept  # exactly as it was
    return False
