"""Swaps of slots inside a node, so that quotas can even every step out, whatever its loads are.

Quotas move load only between ranks that share an expert, and affinity often puts the same experts on the same ranks. In
a step that stays uneven some set of ranks carries experts that lie on no other rank: what is confined there, divided by
the ranks, is the least peak (max-flow and min-cut; Gallo, Grigoriadis and Tarjan 1989). A swap that takes a confined
expert out of that set, or brings one in that has a replica elsewhere, lowers it. So swaps are listed by what they
change of all steps' busiest sets, which costs little, and only the most promising ones are tried in full.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ..moves.ranks import count_held, received, swap_held, swap_receipt
from ..traffic.fixed_rules import Cluster
from .peaks import peaks_of

TRIES = 48  # swaps tried in full before a layer counts as arranged
EVEN = 0.005  # share by which peaks may exceed the mean before a layer is arranged at all
NEAR = 0.02  # share below the peak from which a rank belongs to the busiest ones


@kernel
def _relief(phy2log: Array, loads: Array, slots: int, rank_load: Array, change: Array) -> None:
    """change: [P, ranks], filled: how much more is confined to a rank of a busiest set, all steps added up, if a slot's
    expert lies on that rank instead. To first order: the next busiest set is not looked at."""
    steps, experts = loads.shape
    ranks, copies, inside = rank_load.shape[1], np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    busiest = np.zeros(ranks, np.bool_)
    for expert in phy2log:
        copies[expert] += 1
    change[:] = 0.0
    for step in range(steps):
        peak = rank_load[step].max()
        if peak <= (1.0 + EVEN) * rank_load[step].mean():
            continue
        busiest[:] = rank_load[step] >= (1.0 - NEAR) * peak
        inside[:] = 0
        for slot in range(phy2log.shape[0]):
            if busiest[slot // slots]:
                inside[phy2log[slot]] += 1
        for slot in range(phy2log.shape[0]):
            expert, here = phy2log[slot], busiest[slot // slots]
            outside = copies[expert] - inside[expert]
            if outside == (0 if here else 1):  # confined now, or if it comes in
                worth = loads[step, expert] / busiest.sum()
                for rank in range(ranks):
                    if busiest[rank] != here:
                        change[slot, rank] += -worth if here else worth


@kernel
def _promising(phy2log: Array, cluster: Cluster, held: Array, change: Array, swaps: Array) -> int:
    """swaps: [TRIES, 2] slots of one node whose swap confines least, best first; returns how many confine less."""
    worth, found, slots = np.zeros(swaps.shape[0]), 0, cluster.slots_per_rank
    for first in range(phy2log.shape[0]):
        rank, mine = first // slots, phy2log[first]
        for second in range((rank + 1) * slots, phy2log.shape[0]):
            other, theirs = second // slots, phy2log[second]
            value = change[first, other] + change[second, rank]
            if value >= (worth[found - 1] if found == swaps.shape[0] else 0.0):
                continue
            if cluster.node_of_rank[rank] != cluster.node_of_rank[other] or held[other, mine] or held[rank, theirs]:
                continue
            found = keep_best(worth, swaps, found, value, first, second)
    return found


@kernel
def keep_best(worth: Array, listed: Array, found: int, value: float, first: int, second: int) -> int:
    """Sort a pair into listed: [most, 2], least value first, of which there are `found`; returns how many there are."""
    found = min(found + 1, listed.shape[0])
    place = found - 1
    while place > 0 and worth[place - 1] > value:
        worth[place], listed[place] = worth[place - 1], listed[place - 1]
        place -= 1
    worth[place], listed[place, 0], listed[place, 1] = value, first, second
    return found


@kernel
def arrange(
    phy2log: Array, loads: Array, cluster: Cluster, before: Array, budget: int, least: float, tries: int
) -> int:
    """Swap slots of phy2log: [P] in place while that lowers the steps' peaks; returns the number of swaps.

    loads: [S, E] float64 of single steps; before: [ranks, E] what ranks held when moves began to count; budget: most
    moved slots; least: share of the peaks that a swap must save; tries: swaps tried in full, at most.
    """
    ranks, slots, swapped = cluster.node_of_rank.shape[0], cluster.slots_per_rank, 0
    held = count_held(phy2log, cluster, loads.shape[1])
    left = budget - received(held, before)
    now, then = np.empty((loads.shape[0], ranks)), np.empty((loads.shape[0], ranks))
    change, swaps = np.empty((phy2log.shape[0], ranks)), np.empty((TRIES, 2), np.int64)
    peaks, even = peaks_of(phy2log, loads, slots, np.inf, now), (1.0 + EVEN) * loads.sum() / ranks
    improved = True
    while improved and tries > 0 and peaks > even:
        improved = False
        _relief(phy2log, loads, slots, now, change)
        for place in range(_promising(phy2log, cluster, held, change, swaps)):
            first, second = swaps[place]
            rank, mine, other, theirs = first // slots, phy2log[first], second // slots, phy2log[second]
            cost = swap_receipt(held, before, rank, mine, other, theirs)
            if cost > left or tries == 0:
                continue
            phy2log[first], phy2log[second] = theirs, mine
            tries -= 1
            lower = peaks_of(phy2log, loads, slots, (1.0 - least * max(cost, 1)) * peaks, then)
            if lower < np.inf:
                swap_held(held, rank, mine, other, theirs)
                peaks, now, then, improved = lower, then, now, True
                left -= cost
                swapped += 1
                break
            phy2log[first], phy2log[second] = mine, theirs
    return swapped
