"""Lower the busiest rank by swaps of two slots, where every slot's load is known; replicas stay on their nodes.

Swaps within a node cost no crossings; across nodes only single copies change places, at the price of their visits.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ..traffic.fixed_rules import Cluster
from ..traffic.node_visits import Visits, most_arrivals, swap_experts, swap_worth
from .ranks import count_held, received

RELIEF_PRICE = 0.3  # crossings per token that a relief of one mean rank load is worth
LEAST_RELIEF = 1e-4  # of a mean rank load
MAX_SWAPS = 300


@kernel
def receipt(held: Array, before: Array, rank: int, incoming: int, outgoing: int) -> int:
    """Change of the moved slots if `rank` takes `incoming` in place of `outgoing`."""
    cost = 1 if held[rank, incoming] >= before[rank, incoming] else 0
    return cost - (1 if held[rank, outgoing] > before[rank, outgoing] else 0)


@kernel
def swap_receipt(held: Array, before: Array, rank: int, mine: int, other: int, theirs: int) -> int:
    """The same if two ranks exchange `mine` and `theirs`."""
    return receipt(held, before, rank, theirs, mine) + receipt(held, before, other, mine, theirs)


@kernel
def swap_held(held: Array, rank: int, mine: int, other: int, theirs: int) -> None:
    """held: [ranks, E], in place, after that exchange."""
    held[rank, mine] -= 1
    held[rank, theirs] += 1
    held[other, theirs] -= 1
    held[other, mine] += 1


@kernel
def _best_swap(
    busiest: int, phy2log: Array, slot_load: Array, rank_load: Array, cluster: Cluster, movable: Array,
    visits: Visits, held: Array, before: Array, left: int, aim: float, ingress: float,
) -> tuple[int, int]:  # fmt: skip
    """(slot of the busiest rank, other slot) of the swap worth most; -1 if none relieves it."""
    slots, mean, home = cluster.slots_per_rank, rank_load.mean(), cluster.node_of_rank[busiest]
    top, price = rank_load[busiest], RELIEF_PRICE * max(visits.rows.shape[0], 1) / mean
    most = most_arrivals(visits, ingress)
    best, best_own, best_slot = 0.0, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        mine = phy2log[own]
        for slot in range(phy2log.shape[0]):
            rank, theirs = slot // slots, phy2log[slot]
            shift = slot_load[own] - slot_load[slot]
            if rank == busiest or shift <= 0.0:
                continue
            peak = max(top - shift, rank_load[rank] + shift)
            if top - peak < LEAST_RELIEF * mean:
                continue
            value = price * (top - max(peak, mean * (1.0 + 0.5 * aim)))
            if cluster.node_of_rank[rank] != home:
                if not (movable[mine] and movable[theirs]):
                    continue
                value += swap_worth(visits, mine, theirs, most)
            if value <= best or held[rank, mine] > 0 or held[busiest, theirs] > 0:
                continue
            cost = swap_receipt(held, before, busiest, mine, rank, theirs)
            if cost <= left:
                best, best_own, best_slot = value, own, slot
    return best_own, best_slot


@kernel
def level_ranks(
    phy2log: Array,
    slot_load: Array,
    cluster: Cluster,
    movable: Array,
    visits: Visits,
    before: Array,
    budget: int,
    aim: float,
    ingress: float,
) -> int:
    """Swap slots in place, with their loads, until no rank stands out or no swap pays; returns the number of swaps.

    movable: [E] experts with one copy; before: [ranks, E] what ranks held when moves began to count;
    budget: most moved slots; aim: overload that is left alone; ingress: share by which a node's arrivals may exceed the
    mean before they have a price.
    """
    slots = cluster.slots_per_rank
    held = count_held(phy2log, cluster, movable.shape[0])
    rank_load = np.zeros(held.shape[0])
    for slot in range(phy2log.shape[0]):
        rank_load[slot // slots] += slot_load[slot]
    left = budget - received(held, before)
    stuck, swaps, mean = np.zeros(held.shape[0], np.bool_), 0, rank_load.mean()
    for _ in range(MAX_SWAPS):
        busiest = -1
        for rank in range(held.shape[0]):
            if not stuck[rank] and (busiest < 0 or rank_load[rank] > rank_load[busiest]):
                busiest = rank
        if busiest < 0 or rank_load[busiest] <= mean * (1.0 + aim):
            break
        own, slot = _best_swap(
            busiest, phy2log, slot_load, rank_load, cluster, movable, visits, held, before, left, aim, ingress
        )
        if own < 0:
            stuck[busiest] = True
            continue
        rank, mine, theirs, shift = slot // slots, phy2log[own], phy2log[slot], slot_load[own] - slot_load[slot]
        if cluster.node_of_rank[rank] != cluster.node_of_rank[busiest]:
            swap_experts(visits, mine, theirs)
        left -= swap_receipt(held, before, busiest, mine, rank, theirs)
        phy2log[own], phy2log[slot] = theirs, mine
        slot_load[own], slot_load[slot] = slot_load[slot], slot_load[own]
        rank_load[busiest] -= shift
        rank_load[rank] += shift
        swap_held(held, busiest, mine, rank, theirs)
        stuck[rank] = False
        swaps += 1
    return swaps
