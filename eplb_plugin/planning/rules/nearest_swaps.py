"""Lower the busiest rank under `nearest` by swaps of two slots, counted by the rule itself.

A copy serves whole source ranks, and whom it serves depends on where all others of its expert are. So a swap changes
the load of many ranks: it is tried, and taken back unless ranks are more even than before.
"""

from __future__ import annotations

import numpy as np

from ...dispatch.rules import fill_nearest
from ...jit import Array, kernel

AIM = 0.003  # overload of a rank that is left alone
MAX_SWAPS = 300
TRIED = 24  # swaps of the busiest rank that promise most
LEAST = 1e-9  # by which the sum of squares must shrink, in mean loads


@kernel
def level_nearest(load: Array, phy2log: Array, node_of_rank: Array, slots_per_rank: int) -> int:
    """load: [E]; phy2log: [P], in place; returns the number of swaps. No expert comes twice on a rank by it."""
    ranks = node_of_rank.shape[0]
    served, rank_load = np.zeros(phy2log.shape[0], np.int64), np.zeros(ranks)
    for expert in range(load.shape[0]):
        _serve(expert, load, phy2log, node_of_rank, slots_per_rank, served, rank_load)
    mean, swaps, stuck = rank_load.mean(), 0, np.zeros(ranks, np.bool_)
    for _ in range(MAX_SWAPS):
        busiest = -1
        for rank in range(ranks):
            if not stuck[rank] and (busiest < 0 or rank_load[rank] > rank_load[busiest]):
                busiest = rank
        if busiest < 0 or rank_load[busiest] <= mean * (1.0 + AIM):
            break
        if _swap_best(busiest, load, phy2log, node_of_rank, slots_per_rank, served, rank_load):
            stuck[:] = False
            swaps += 1
        else:
            stuck[busiest] = True
    return swaps


@kernel
def _serve(
    expert: int, load: Array, phy2log: Array, node_of_rank: Array, slots_per_rank: int, served: Array, rank_load: Array
) -> None:
    """Count anew whom an expert's copies serve, in served: [P] source ranks, and what that means for rank_load."""
    copies, part = np.flatnonzero(phy2log == expert), load[expert] / node_of_rank.shape[0]
    line = np.empty(node_of_rank.shape[0], np.int32)
    fill_nearest(copies, expert, node_of_rank, slots_per_rank, line)
    for slot in copies:
        served[slot] = 0
    for slot in line:
        served[slot] += 1
    for slot in copies:
        rank_load[slot // slots_per_rank] += part * served[slot]


@kernel
def _exchange(
    own: int, other: int, load: Array, phy2log: Array, node_of_rank: Array, slots_per_rank: int, served: Array,
    rank_load: Array,
) -> None:  # fmt: skip
    ranks = node_of_rank.shape[0]
    for slot in range(phy2log.shape[0]):
        if phy2log[slot] == phy2log[own] or phy2log[slot] == phy2log[other]:
            rank_load[slot // slots_per_rank] -= load[phy2log[slot]] / ranks * served[slot]
    phy2log[own], phy2log[other] = phy2log[other], phy2log[own]
    for slot in (own, other):
        _serve(phy2log[slot], load, phy2log, node_of_rank, slots_per_rank, served, rank_load)


@kernel
def _holds(phy2log: Array, rank: int, slots_per_rank: int, expert: int) -> bool:
    return bool((phy2log[rank * slots_per_rank : (rank + 1) * slots_per_rank] == expert).any())


@kernel
def _swap_best(
    busiest: int, load: Array, phy2log: Array, node_of_rank: Array, slots_per_rank: int, served: Array, rank_load: Array
) -> bool:
    """Try swaps in the order of what they promise if everybody went on to serve as many; keep the first that helps."""
    top, ranks, mean = rank_load[busiest], node_of_rank.shape[0], rank_load.mean()
    promised, first, second = np.full(TRIED, top), np.full(TRIED, -1), np.full(TRIED, -1)
    for own in range(busiest * slots_per_rank, (busiest + 1) * slots_per_rank):
        mine = load[phy2log[own]] / ranks * served[own]
        for other in range(phy2log.shape[0]):
            rank, shift = other // slots_per_rank, mine - load[phy2log[other]] / ranks * served[other]
            worst = np.argmax(promised)
            peak = max(top - shift, rank_load[rank] + shift)
            if rank == busiest or shift <= 0.0 or peak >= promised[worst]:
                continue
            if _holds(phy2log, rank, slots_per_rank, phy2log[own]):
                continue
            if not _holds(phy2log, busiest, slots_per_rank, phy2log[other]):
                promised[worst], first[worst], second[worst] = peak, own, other
    before, squares = rank_load.max(), (rank_load**2).sum()
    for choice in np.argsort(promised):
        own, other = first[choice], second[choice]
        if own < 0:
            continue
        kept = rank_load.copy()
        _exchange(own, other, load, phy2log, node_of_rank, slots_per_rank, served, rank_load)
        if rank_load.max() <= before * (1.0 + 1e-12) and (rank_load**2).sum() < squares - LEAST * mean * mean:
            return True
        _exchange(own, other, load, phy2log, node_of_rank, slots_per_rank, served, rank_load)
        rank_load[:] = kept  # exactly as it was
    return False
