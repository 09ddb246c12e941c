"""Repair the old placement under a budget of moved slots: balance first, then crossings where the gain is real."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .crossings import Cluster, count_crossings
from .ranks import Ranks, count_copies, count_held, open_ranks, received, swap_receipts, swap_slots
from .relabel import keep_slots
from .repair import LEAST_COST, open_singles, repair
from .tokens import Tokens
from .visits import Visits, swap_experts, swap_gain

REAL_SHARE = 0.002  # crossings per token that a swap between nodes must save to be worth two weights …
REAL_SIGMAS = 2.0  # … and how many standard deviations of the tokens it concerns


@kernel
def repair_layer(load: Array, old: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int) -> Array:
    """One layer -> phy2log [P] near `old`, with at most `budget` moved slots and unmoved experts in their old slots."""
    phy2log, before = old.copy(), count_held(old, cluster, load.shape[0])
    repair(load, phy2log, before, cluster, tokens, peak_ratio, budget)
    if tokens.rows.shape[0] > 0:
        improve_locality(load, phy2log, before, cluster, tokens, peak_ratio, budget)
    return keep_slots(phy2log, old, cluster.slots_per_rank)


@kernel
def expected_balance(load: Array, phy2log: Array, cluster: Cluster) -> float:
    """Mean over busiest rank's expected load, 1.0 where there is no load."""
    rank_load = open_ranks(load, phy2log, np.zeros((1, 1), np.int32), cluster).rank_load
    peak = rank_load.max()
    return rank_load.mean() / peak if peak > 0.0 else 1.0


@kernel
def expected_crossings(phy2log: Array, cluster: Cluster, tokens: Tokens, experts: int) -> int:
    """Copies that the tokens send to other nodes."""
    return count_crossings(count_copies(count_held(phy2log, cluster, experts), cluster), cluster, tokens)


@kernel
def improve_locality(
    load: Array, phy2log: Array, before: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int
) -> None:
    """Swap single copies between nodes, in place, where that really saves crossings and overloads no rank."""
    ranks = open_ranks(load, phy2log, before, cluster)
    movable, visits = open_singles(ranks, cluster, tokens)
    least, bound = max(REAL_SHARE * tokens.rows.shape[0], 1.0), ranks.rank_load.mean() * peak_ratio
    for _ in range(2 * phy2log.shape[0]):
        first, second = _best_saving(budget - received(ranks), ranks, cluster, movable, visits, bound, least)
        if first < 0:
            break
        mine, theirs = phy2log[first], phy2log[second]
        if swap_experts(visits, mine, theirs) < least:  # the tables overrate a pair that tokens select together
            swap_experts(visits, mine, theirs)
            movable[mine] = False
        else:
            swap_slots(ranks, cluster, first, second)


@kernel
def _best_saving(
    budget: int, ranks: Ranks, cluster: Cluster, movable: Array, visits: Visits, bound: float, least: float
) -> tuple[int, int]:
    """The two slots whose swap saves most crossings per received weight; -1 if none saves `least` and beats noise."""
    best, best_first, best_second = 0.0, -1, -1
    for first in range(ranks.phy2log.shape[0]):
        mine = ranks.phy2log[first]
        if not movable[mine]:
            continue
        rank, node = first // cluster.slots_per_rank, visits.node_of[mine]
        for second in range(first + 1, ranks.phy2log.shape[0]):
            theirs = ranks.phy2log[second]
            there = visits.node_of[theirs]
            if there == node or not movable[theirs]:
                continue
            saved = float(swap_gain(visits, mine, theirs))
            if saved < least or saved <= best * LEAST_COST:
                continue
            concerned = visits.sole[mine] + visits.absent[there, mine]
            concerned += visits.sole[theirs] + visits.absent[node, theirs]
            if saved * saved < REAL_SIGMAS * REAL_SIGMAS * concerned:
                continue
            other, shift = second // cluster.slots_per_rank, ranks.load[mine] - ranks.load[theirs]
            heavier = rank if shift < 0.0 else other
            if ranks.rank_load[heavier] + abs(shift) > bound:
                continue
            cost = swap_receipts(ranks, cluster, first, second)
            if cost <= budget and saved / max(cost, LEAST_COST) > best:
                best, best_first, best_second = saved / max(cost, LEAST_COST), first, second
    return best_first, best_second
