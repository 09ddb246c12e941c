"""Arrange replicas inside their nodes so that `exact` can even every step out, whatever its loads are.

Quotas move load only between ranks that share an expert, and affinity often puts the same experts on the same ranks. In
a step that stays uneven some set of ranks carries experts that lie on no other rank: what is confined there, divided by
the ranks, is the least peak (max-flow and min-cut; Gallo, Grigoriadis and Tarjan 1989). A swap that takes a confined
expert out of that set, or brings one in that has a replica elsewhere, lowers it. So swaps are listed by what they
change of all steps' busiest sets, which costs little, and only the most promising ones are tried in full. Slots change
ranks inside a node only: the nodes which hold an expert stay the same, and with them the tokens' ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import thinned
from ..jit import Array, kernel
from ..placement import Placement
from ..plan_types import PlanOptions
from ..topology import Topology
from .moves.budget import NO_LIMIT, count_moved
from .moves.ranks import count_held, received, swap_held, swap_receipt
from .rules.min_cost_flow import Copies, list_by_expert
from .traffic.fixed_rules import Cluster

SWEEPS = 6  # over the experts, to settle a step
TRIES = 48  # swaps tried in full before a layer counts as arranged
MOST_TRIES = 128  # in all
MOST_LOADS = 1 << 13  # steps × experts that a swap is judged by: time grows with them
EVEN = 0.005  # share by which peaks may exceed the mean before a layer is arranged at all
NEAR = 0.02  # share below the peak from which a rank belongs to the busiest ones
LEAST = 1e-5  # share of the peaks that a swap must save …
REAL_LEAST = 1e-3  # … where ranks hold weights already, that move


def even_steps(
    steps: NDArray[Any],
    phy2log: NDArray[np.int32],
    previous: Placement | None,
    topology: Topology,
    options: PlanOptions,
) -> NDArray[np.int32]:
    """steps: [S, L, E] loads; phy2log: [L, P] as planned -> [L, P] arranged, with no more moves than the options allow.

    previous: the placement that moves are counted from; None: nothing lies anywhere yet.
    """
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)
    experts, arranged = steps.shape[2], phy2log.astype(np.int64)
    cap = NO_LIMIT if options.max_moved_slots is None else int(options.max_moved_slots)
    left = NO_LIMIT if options.max_moved_slots_total is None else int(options.max_moved_slots_total)
    if previous is not None:
        left -= int(count_moved(phy2log, previous.phy2log, topology.num_ranks, experts).sum())
    for layer, row in enumerate(arranged):
        filled = steps[steps[:, layer].any(axis=1), layer]
        if not len(filled):
            continue
        loads = np.ascontiguousarray(thinned(filled, max(MOST_LOADS // experts, 1)), np.float64)
        if previous is None:
            arrange(row, loads, cluster, np.full((topology.num_ranks, experts), topology.num_slots), NO_LIMIT, LEAST)
            continue
        if options.is_priced and np.array_equal(row, previous.phy2log[layer]):
            continue  # its move would not pay
        before = count_held(previous.phy2log[layer].astype(np.int64), cluster, experts)
        spent = received(count_held(row, cluster, experts), before)
        arrange(row, loads, cluster, before, min(cap, spent + max(left, 0)), REAL_LEAST)
        left -= received(count_held(row, cluster, experts), before) - spent
    return arranged.astype(np.int32)


@kernel
def _open(phy2log: Array, experts: int, slots: int) -> Copies:
    """One slot of every expert on a rank, by expert: a second one there makes no rank lighter."""
    is_first = np.ones(phy2log.shape[0], np.bool_)
    for slot in range(phy2log.shape[0]):
        for earlier in range(slot // slots * slots, slot):
            if phy2log[earlier] == phy2log[slot]:
                is_first[slot] = False
    first = np.flatnonzero(is_first)
    return list_by_expert(phy2log[first], first // slots, experts)


@kernel
def _settle(load: Array, copies: Copies, multiple: Array, quota: Array, rank_load: Array) -> None:
    """load: [E] of one step -> quota: [C] and rank_load: [ranks] with a peak as low as some sweeps find it. multiple:
    experts on several ranks.
    """
    rank_load[:] = 0.0
    for expert in range(load.shape[0]):
        first, last = copies.start[expert], copies.start[expert + 1]
        for copy in copies.listed[first:last]:
            quota[copy] = load[expert] / (last - first)
            rank_load[copies.bin[copy]] += quota[copy]
    for _ in range(SWEEPS):
        for expert in multiple:
            if load[expert] > 0.0:
                listed = copies.listed[copies.start[expert] : copies.start[expert + 1]]
                _fill(listed, load[expert], copies.bin, quota, rank_load)


@kernel
def _fill(listed: Array, load: float, rank_of: Array, quota: Array, rank_load: Array) -> None:
    """One expert's load over its copies, up to one level of their ranks."""
    if listed.shape[0] == 2:  # most are two: in closed form
        first, second = listed[0], listed[1]
        one, other = rank_of[first], rank_of[second]
        gap = (rank_load[other] - quota[second]) - (rank_load[one] - quota[first])
        moved = min(max(0.5 * (load + gap), 0.0), load) - quota[first]
        quota[first] += moved
        quota[second] -= moved
        rank_load[one] += moved
        rank_load[other] -= moved
        return
    for copy in listed:
        rank_load[rank_of[copy]] -= quota[copy]
    below, level = np.inf, 0.0
    while True:  # ranks above the level take nothing, which lowers it
        amount, filled, highest = load, 0, -1.0
        for copy in listed:
            other = rank_load[rank_of[copy]]
            if other < below:
                amount += other
                filled += 1
        level = amount / filled
        for copy in listed:
            other = rank_load[rank_of[copy]]
            if level < other < below:
                highest = max(highest, other)
        if highest < 0.0:
            break
        below = highest
    for copy in listed:
        quota[copy] = max(level - rank_load[rank_of[copy]], 0.0) if rank_load[rank_of[copy]] < below else 0.0
    for copy in listed:
        rank_load[rank_of[copy]] += quota[copy]


@kernel
def _peaks(phy2log: Array, loads: Array, slots: int, most: float, rank_load: Array) -> float:
    """Peaks of all steps, added up; infinite if they are above `most`. rank_load: [S, ranks] is filled."""
    copies, quota = _open(phy2log, loads.shape[1], slots), np.empty(phy2log.shape[0])
    multiple = np.flatnonzero(copies.start[1:] - copies.start[:-1] > 1)
    peaks = loads.sum() / rank_load.shape[1]  # at the least; step by step it becomes the sum
    for step in range(loads.shape[0]):
        _settle(loads[step], copies, multiple, quota, rank_load[step])
        peaks += rank_load[step].max() - rank_load[step].mean()
        if peaks > most:
            return np.inf
    return peaks


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
            found = min(found + 1, swaps.shape[0])
            place = found - 1
            while place > 0 and worth[place - 1] > value:
                worth[place], swaps[place] = worth[place - 1], swaps[place - 1]
                place -= 1
            worth[place], swaps[place, 0], swaps[place, 1] = value, first, second
    return found


@kernel
def arrange(phy2log: Array, loads: Array, cluster: Cluster, before: Array, budget: int, least: float) -> int:
    """Swap slots of phy2log: [P] in place while that lowers the steps' peaks; returns the number of swaps.

    loads: [S, E] float64 of single steps; before: [ranks, E] what ranks held when moves began to count; budget: most
    moved slots; least: share of the peaks that a swap must save.
    """
    ranks, slots, swapped = cluster.node_of_rank.shape[0], cluster.slots_per_rank, 0
    held = count_held(phy2log, cluster, loads.shape[1])
    left, tries = budget - received(held, before), MOST_TRIES
    now, then = np.empty((loads.shape[0], ranks)), np.empty((loads.shape[0], ranks))
    change, swaps = np.empty((phy2log.shape[0], ranks)), np.empty((TRIES, 2), np.int64)
    peaks, even = _peaks(phy2log, loads, slots, np.inf, now), (1.0 + EVEN) * loads.sum() / ranks
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
            lower = _peaks(phy2log, loads, slots, (1.0 - least * max(cost, 1)) * peaks, then)
            if lower < np.inf:
                swap_held(held, rank, mine, other, theirs)
                peaks, now, then, improved = lower, then, now, True
                left -= cost
                swapped += 1
                break
            phy2log[first], phy2log[second] = mine, theirs
    return swapped
