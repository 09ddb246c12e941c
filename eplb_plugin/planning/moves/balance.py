"""Lower the busiest rank by swaps of two slots, where every slot's load is known; replicas stay on their nodes.

Swaps within a node cost no crossings; across nodes only single copies change places, at the price of their visits.
"""

from __future__ import annotations

import numpy as np

from ...jit import kernel
from ..traffic.node_visits import most_arrivals, swap_worth
from .swap_state import SwapState, is_affordable, makes_twins, swap

RELIEF_PRICE = 0.3  # crossings per token that a relief of one mean rank load is worth
LEAST_RELIEF = 1e-4  # of a mean rank load
MAX_SWAPS = 300


@kernel
def _best_swap(state: SwapState, busiest: int, aim: float) -> tuple[int, int]:
    """(slot of the busiest rank, other slot) of the swap worth most; -1 if none relieves it."""
    cluster, visits, rank_load = state.cluster, state.visits, state.rank_load[0]
    slots, mean, home = cluster.slots_per_rank, rank_load.mean(), cluster.node_of_rank[busiest]
    top, price = rank_load[busiest], RELIEF_PRICE * max(visits.rows.shape[0], 1) / mean
    most = most_arrivals(visits, state.ingress)
    best, best_own, best_slot = 0.0, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        mine = state.phy2log[own]
        for slot in range(state.phy2log.shape[0]):
            rank, theirs = slot // slots, state.phy2log[slot]
            shift = state.slot_load[0, own] - state.slot_load[0, slot]
            if rank == busiest or shift <= 0.0:
                continue
            peak = max(top - shift, rank_load[rank] + shift)
            if top - peak < LEAST_RELIEF * mean:
                continue
            value = price * (top - max(peak, mean * (1.0 + 0.5 * aim)))
            if cluster.node_of_rank[rank] != home:
                if not (state.movable[mine] and state.movable[theirs]):
                    continue
                value += swap_worth(visits, mine, theirs, most)
            if value <= best or makes_twins(state, own, slot):
                continue
            if is_affordable(state, own, slot):
                best, best_own, best_slot = value, own, slot
    return best_own, best_slot


@kernel
def level_ranks(state: SwapState, aim: float) -> int:
    """Swap slots until no rank stands out or no swap pays; returns the number of swaps.

    aim: overload that is left alone. Only the sum of the traffic counts: slot_load has one row.
    """
    slots, rank_load = state.cluster.slots_per_rank, state.rank_load[0]
    stuck, swaps, mean = np.zeros(rank_load.shape[0], np.bool_), 0, rank_load.mean()
    for _ in range(MAX_SWAPS):
        busiest = -1
        for rank in range(rank_load.shape[0]):
            if not stuck[rank] and (busiest < 0 or rank_load[rank] > rank_load[busiest]):
                busiest = rank
        if busiest < 0 or rank_load[busiest] <= mean * (1.0 + aim):
            break
        own, slot = _best_swap(state, busiest, aim)
        if own < 0:
            stuck[busiest] = True
            continue
        swap(state, own, slot)
        stuck[slot // slots] = False
        swaps += 1
    return swaps
