"""Swaps of single copies between nodes that save crossings, and make no pair of ranks or nodes less even."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..traffic.fixed_rules import Cluster
from ..traffic.node_visits import Visits, most_arrivals, real_changes, swap_changes, swap_experts
from .balance import swap_held, swap_receipt
from .ranks import count_held, received
from .relief import LEAST_COST

REAL_SHARE = 0.002  # crossings per token that a swap must save to be worth two weights …
REAL_SIGMAS = 2.0  # … and how many standard deviations of the tokens it concerns
SWEEPS = 4  # looks for the best partner of every slot


class Demands(NamedTuple):
    """What a swap must keep to. bound: load up to which it may raise a rank; ingress: share by which it may raise a
    node's arrivals above the mean; share, sigmas: crossings per token, and standard deviations, that it must save.
    """

    bound: float
    ingress: float
    share: float
    sigmas: float


@kernel
def _worth(
    first: int, second: int, phy2log: Array, slot_load: Array, rank_load: Array, cluster: Cluster, movable: Array,
    visits: Visits, held: Array, before: Array, left: int, demands: Demands, least: float,
) -> float:  # fmt: skip
    """Crossings that swapping two slots saves per received weight, more than `least`; 0 if it must not be."""
    mine, theirs = phy2log[first], phy2log[second]
    a, b = visits.node_of[mine], visits.node_of[theirs]
    if a == b or not (movable[mine] and movable[theirs]):
        return 0.0
    here, there = swap_changes(visits, mine, theirs)
    must = max(demands.share * visits.rows.shape[0], 1.0)
    if -float(here + there) < max(must, LEAST_COST * least):
        return 0.0
    rank, other = first // cluster.slots_per_rank, second // cluster.slots_per_rank
    shift = slot_load[first] - slot_load[second]
    heavier = max(rank_load[rank] - shift, rank_load[other] + shift)
    if heavier > max(rank_load[rank], rank_load[other], demands.bound):
        return 0.0
    cost = swap_receipt(held, before, rank, mine, other, theirs)
    if cost > left or -float(here + there) <= least * max(cost, LEAST_COST):
        return 0.0
    here, there = real_changes(visits, mine, theirs)
    saved = -float(here + there)
    concerned = visits.sole[mine] + visits.absent[b, mine] + visits.sole[theirs] + visits.absent[a, theirs]
    if saved < must or saved * saved < demands.sigmas * demands.sigmas * concerned:
        return 0.0
    in_a, in_b = visits.visited[a] - visits.own[a], visits.visited[b] - visits.own[b]
    if max(in_a + here, in_b + there) > max(in_a, in_b, most_arrivals(visits, demands.ingress)):
        return 0.0
    return saved / max(cost, LEAST_COST)


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
def save_visits(
    phy2log: Array, slot_load: Array, cluster: Cluster, movable: Array, visits: Visits, before: Array, budget: int,
    demands: Demands,
) -> int:  # fmt: skip
    """Swap slots in place, with their loads, within `budget` moved slots; returns the number of swaps.

    movable: [E] experts with one copy; before: [ranks, E] what ranks held when moves began to count.
    """
    slots, count = cluster.slots_per_rank, phy2log.shape[0]
    held = count_held(phy2log, cluster, movable.shape[0])
    rank_load, swaps = np.zeros(held.shape[0]), 0
    for slot in range(count):
        rank_load[slot // slots] += slot_load[slot]
    least = max(demands.share * visits.rows.shape[0], 1.0)
    left = budget - received(held, before)
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
                        demands, best[first],
                    )  # fmt: skip
                    if worth > best[first]:
                        best[first], partner[first] = worth, second
        swapped = 0
        for first in np.argsort(-best, kind="mergesort"):
            second = partner[first]
            if best[first] <= 0.0:
                break
            worth = _worth(  # things have changed since it was looked at
                first, second, phy2log, slot_load, rank_load, cluster, movable, visits, held, before, left, demands, 0.0
            )
            if worth <= 0.0:
                continue
            mine, theirs = phy2log[first], phy2log[second]
            swap_experts(visits, mine, theirs)
            rank, other, shift = first // slots, second // slots, slot_load[first] - slot_load[second]
            left -= swap_receipt(held, before, rank, mine, other, theirs)
            phy2log[first], phy2log[second] = theirs, mine
            slot_load[first], slot_load[second] = slot_load[second], slot_load[first]
            rank_load[rank] -= shift
            rank_load[other] += shift
            swap_held(held, rank, mine, other, theirs)
            swapped += 1
        swaps += swapped
        if swapped == 0:
            break
    return swaps
