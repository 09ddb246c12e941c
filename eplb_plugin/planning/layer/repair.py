"""Repair the old placement under a budget of moved slots: balance first, then crossings where the gain is real."""

from __future__ import annotations

from ...jit import Array
from ..moves.locality import REAL_SHARE, REAL_SIGMAS, Demands, save_visits
from ..moves.ranks import count_held, mean_load, open_ranks, slot_shares
from ..moves.relabel import keep_slots
from ..moves.relief import open_singles, relieve
from ..moves.swap_state import SwapBounds, open_swaps
from ..sample import Tokens
from ..traffic.fixed_rules import Cluster


def repair_layer(
    load: Array, old: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int, ingress: float
) -> Array:
    """One layer -> phy2log [P] near `old`, with at most `budget` moved slots and unmoved experts in their old slots."""
    phy2log, before = old.copy(), count_held(old, cluster, len(load))
    ranks = open_ranks(load, phy2log, before, cluster)
    movable, visits = open_singles(ranks, cluster, tokens)
    written = relieve(ranks, cluster, tokens, movable, visits, peak_ratio, budget)
    if len(tokens.rows) > 0:
        if written > 0:
            movable, visits = open_singles(ranks, cluster, tokens)
        slot_load = (load[phy2log] * slot_shares(ranks, cluster))[None]
        bounds = SwapBounds(before, budget, ingress)
        demands = Demands(mean_load(ranks) * peak_ratio, REAL_SHARE, REAL_SIGMAS)
        save_visits(open_swaps(phy2log, slot_load, cluster, movable, visits, bounds), demands)
    return keep_slots(phy2log, old, cluster.slots_per_rank)
