"""Repair the old placement under a budget of moved slots: balance first, then crossings where the gain is real."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .crossings import Cluster, count_crossings
from .locality import REAL_SHARE, REAL_SIGMAS, Demands, save_visits
from .ranks import count_copies, count_held, open_ranks
from .relabel import keep_slots
from .repair import open_singles, relieve
from .tokens import Tokens


@kernel
def repair_layer(
    load: Array, old: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int, ingress: float
) -> Array:
    """One layer -> phy2log [P] near `old`, with at most `budget` moved slots and unmoved experts in their old slots."""
    phy2log, before = old.copy(), count_held(old, cluster, load.shape[0])
    ranks = open_ranks(load, phy2log, before, cluster)
    movable, visits = open_singles(ranks, cluster, tokens)
    written = relieve(ranks, cluster, tokens, movable, visits, peak_ratio, budget)
    if tokens.rows.shape[0] > 0:
        if written > 0:
            movable, visits = open_singles(ranks, cluster, tokens)
        slot_load = np.empty(phy2log.shape[0])
        for slot in range(phy2log.shape[0]):
            node = cluster.node_of_rank[slot // cluster.slots_per_rank]
            slot_load[slot] = load[phy2log[slot]] * ranks.shares[phy2log[slot], node]
        demands = Demands(ranks.rank_load.mean() * peak_ratio, ingress, REAL_SHARE, REAL_SIGMAS)
        save_visits(phy2log, slot_load, cluster, movable, visits, before, budget, demands)
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
