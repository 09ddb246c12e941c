"""Swaps of single copies between nodes that save crossings, and make no pair of ranks or nodes less even."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..traffic.node_visits import Visits, most_arrivals, real_changes, swap_changes
from .relief import LEAST_COST
from .swap_state import SwapState, cost_of, is_affordable, swap

REAL_SHARE = 0.002  # crossings per token that a swap must save to be worth two weights …
REAL_SIGMAS = 2.0  # … and how many standard deviations of the tokens it concerns
SWEEPS = 4  # looks for the best partner of every slot


class Demands(NamedTuple):
    """What a swap must keep to.

    bound: load up to which it may raise a rank
    share, sigmas: crossings per token, and standard deviations, that it must save
    """

    bound: float
    share: float
    sigmas: float


@kernel
def _worth(state: SwapState, first: int, second: int, demands: Demands, least: float) -> float:
    """Crossings that swapping two slots saves per received weight, more than `least`; 0 if it must not be."""
    visits, rank_load = state.visits, state.rank_load[0]
    mine, theirs = state.phy2log[first], state.phy2log[second]
    a, b = visits.node_of[mine], visits.node_of[theirs]
    if a == b or not (state.movable[mine] and state.movable[theirs]):
        return 0.0
    # the tables never rate a swap too low: what fails by them fails
    here, there = swap_changes(visits, mine, theirs)
    must = max(demands.share * visits.rows.shape[0], 1.0)
    if -float(here + there) < max(must, LEAST_COST * least):
        return 0.0
    # no rank above the bound becomes heavier, and the moves fit the budget
    rank, other = first // state.cluster.slots_per_rank, second // state.cluster.slots_per_rank
    shift = state.slot_load[0, first] - state.slot_load[0, second]
    heavier = max(rank_load[rank] - shift, rank_load[other] + shift)
    if heavier > max(rank_load[rank], rank_load[other], demands.bound):
        return 0.0
    cost = cost_of(state, first, second)
    if not is_affordable(state, first, second) or -float(here + there) <= least * max(cost, LEAST_COST):
        return 0.0
    # what it really saves, which must stand out from chance
    here, there = real_changes(visits, mine, theirs)
    saved = -float(here + there)
    concerned = visits.sole[mine] + visits.absent[b, mine] + visits.sole[theirs] + visits.absent[a, theirs]
    if saved < must or saved * saved < demands.sigmas * demands.sigmas * concerned:
        return 0.0
    in_a, in_b = visits.visited[a] - visits.own[a], visits.visited[b] - visits.own[b]
    if max(in_a + here, in_b + there) > max(in_a, in_b, most_arrivals(visits, state.ingress)):
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
def save_visits(state: SwapState, demands: Demands) -> int:
    """Swap slots while that saves crossings as `demands` say; returns the number of swaps. slot_load has one row."""
    visits, phy2log = state.visits, state.phy2log
    count, swaps, least = phy2log.shape[0], 0, max(demands.share * visits.rows.shape[0], 1.0)
    for _ in range(SWEEPS):
        # the best partner of every slot, by what single experts could gain
        best, partner = np.zeros(count), np.zeros(count, np.int64)
        gain, most = _single_gains(visits, state.movable)
        for first in range(count):
            mine = phy2log[first]
            node = visits.node_of[mine]
            for there in range(most.shape[0] if state.movable[mine] else 0):
                if there == node or gain[there, mine] + most[there, node] < least:
                    continue
                for second in range(first + 1, count):
                    theirs = phy2log[second]
                    if visits.node_of[theirs] != there or gain[there, mine] + gain[node, theirs] < least:
                        continue
                    worth = _worth(state, first, second, demands, best[first])
                    if worth > best[first]:
                        best[first], partner[first] = worth, second
        # swapped in the order of their worth, where they are still worth it
        swapped = 0
        for first in np.argsort(-best, kind="mergesort"):
            if best[first] <= 0.0:
                break
            if _worth(state, first, partner[first], demands, 0.0) > 0.0:
                swap(state, first, partner[first])
                swapped += 1
        swaps += swapped
        if swapped == 0:
            break
    return swaps
