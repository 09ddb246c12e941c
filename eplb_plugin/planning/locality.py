"""Swaps of single copies between nodes that save crossings, from a placement that is in use: each has to beat noise."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .crossings import Cluster
from .level import receipt
from .ranks import count_held
from .repair import LEAST_COST
from .visits import Visits, swap_experts, swap_gain

REAL_SHARE = 0.002  # crossings per token that a swap must save to be worth two weights …
REAL_SIGMAS = 2.0  # … and how many standard deviations of the tokens it concerns
SWEEPS = 4  # looks for the best partner of every slot


@kernel
def _worth(
    first: int, second: int, phy2log: Array, slot_load: Array, rank_load: Array, cluster: Cluster, movable: Array,
    visits: Visits, held: Array, before: Array, left: int, bound: float, least: float,
) -> float:  # fmt: skip
    """Crossings that swapping two slots saves per received weight; 0 if it must not be or is not worth it."""
    mine, theirs = phy2log[first], phy2log[second]
    node, there = visits.node_of[mine], visits.node_of[theirs]
    if there == node or not (movable[mine] and movable[theirs]):
        return 0.0
    saved = float(swap_gain(visits, mine, theirs))
    if saved < least:
        return 0.0
    concerned = visits.sole[mine] + visits.absent[there, mine] + visits.sole[theirs] + visits.absent[node, theirs]
    if saved * saved < REAL_SIGMAS * REAL_SIGMAS * concerned:
        return 0.0
    rank, other = first // cluster.slots_per_rank, second // cluster.slots_per_rank
    shift = slot_load[first] - slot_load[second]
    heavier = rank if shift < 0.0 else other
    if rank_load[heavier] + abs(shift) > bound:
        return 0.0
    cost = receipt(held, before, rank, theirs, mine) + receipt(held, before, other, mine, theirs)
    return saved / max(cost, LEAST_COST) if cost <= left else 0.0


@kernel
def _single_gains(visits: Visits, movable: Array) -> tuple[Array, Array]:
    """[nodes, E] visits that moving one expert alone to a node saves; [from, to] the most that any there does."""
    nodes, experts = visits.absent.shape
    gain, most = np.empty((nodes, experts)), np.full((nodes, nodes), -np.inf)
    for expert in range(experts):
        for node in range(nodes):
            gain[node, expert] = visits.sole[expert] - visits.absent[node, expert]
            if movable[expert]:
                origin = visits.node_of[expert]
                most[origin, node] = max(most[origin, node], gain[node, expert])
    return gain, most


@kernel
def improve_locality(
    phy2log: Array,
    slot_load: Array,
    cluster: Cluster,
    movable: Array,
    visits: Visits,
    before: Array,
    budget: int,
    bound: float,
) -> int:
    """Swap slots in place, with their loads, within `budget` moved slots; returns the number of swaps.

    movable: [E] experts with one copy; before: [ranks, E] what ranks held when moves began to count; bound: load that
    no rank may exceed because of a swap.
    """
    slots, count = cluster.slots_per_rank, phy2log.shape[0]
    held = count_held(phy2log, cluster, movable.shape[0])
    rank_load, movable, swaps = np.zeros(held.shape[0]), movable.copy(), 0
    for slot in range(count):
        rank_load[slot // slots] += slot_load[slot]
    least = max(REAL_SHARE * visits.rows.shape[0], 1.0)
    left = budget - np.maximum(held - before, 0).sum()
    for _ in range(SWEEPS):
        best, partner = np.zeros(count), np.zeros(count, np.int64)
        gain, most = _single_gains(visits, movable)
        for first in range(count):
            mine = phy2log[first]
            node = visits.node_of[mine]
            for there in range(most.shape[0] if movable[mine] else 0):
                if there == node or gain[there, mine] + most[there, node] < least:
                    continue
                for second in range(first + 1, count):
                    theirs = phy2log[second]
                    if visits.node_of[theirs] != there or gain[there, mine] + gain[node, theirs] < least:
                        continue
                    worth = _worth(
                        first, second, phy2log, slot_load, rank_load, cluster, movable, visits, held, before, left,
                        bound, least,
                    )  # fmt: skip
                    if worth > best[first]:
                        best[first], partner[first] = worth, second
        swapped = 0
        for first in np.argsort(-best, kind="mergesort"):
            second = partner[first]
            worth = 0.0
            if best[first] > 0.0:  # things have changed since it was looked at
                worth = _worth(
                    first, second, phy2log, slot_load, rank_load, cluster, movable, visits, held, before, left, bound,
                    least,
                )  # fmt: skip
            if worth <= 0.0:
                continue
            mine, theirs = phy2log[first], phy2log[second]
            if swap_experts(visits, mine, theirs) < least:
                swap_experts(visits, mine, theirs)  # the tables overrate a pair that tokens select together
                movable[mine] = False
                continue
            rank, other, shift = first // slots, second // slots, slot_load[first] - slot_load[second]
            left -= receipt(held, before, rank, theirs, mine) + receipt(held, before, other, mine, theirs)
            phy2log[first], phy2log[second] = theirs, mine
            slot_load[first], slot_load[second] = slot_load[second], slot_load[first]
            rank_load[rank] -= shift
            rank_load[other] += shift
            held[rank, mine] -= 1
            held[rank, theirs] += 1
            held[other, theirs] -= 1
            held[other, mine] += 1
            swapped += 1
        swaps += swapped
        if swapped == 0:
            break
    return swaps
