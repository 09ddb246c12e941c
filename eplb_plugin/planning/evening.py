"""Even out the ranks by few moves where every copy of an expert serves the same share and nodes do not matter.

Always relieve the busiest rank, by the move that takes away most overload per weight that a rank must receive: a swap
of two slots, or a redundant slot overwritten by another expert. Overload is what ranks have beyond the bound, summed.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .even_ranks import EvenRanks, holds, may_hold, open_even, overwrite, swap, weights_received
from .relabel import keep_slots

LEAST = 1e-4  # of the bound: what a move must take from the busiest rank
UNDO = 0.5  # cost of a move that needs no weight, because it undoes another
SURPLUS = 0.02  # what a unit of load counts that a swap shifts beyond need …
RELIEF = 0.001  # … and one that leaves the busiest rank while the pair remains overloaded
NEAR = 1.1  # a move inside a node is worth this much more
ENOUGH = 0.9  # of what a swap can gain at best: no search for more


@kernel
def _best_swap(busiest: int, budget: int, even: EvenRanks, node_of_rank: Array, bound: float) -> tuple[float, int, int]:
    """(value, slot of the busiest rank, other slot); value 0.0 if no swap helps. Ranks of its own node come first."""
    best, best_own, best_slot = 0.0, -1, -1
    for far in (False, True):
        for rank in range(even.rank_load.shape[0]):
            if rank != busiest and (node_of_rank[rank] != node_of_rank[busiest]) == far:
                price = 1.0 if far else NEAR
                value, own, slot = _swap_between(busiest, rank, budget, even, bound, price, best)
                if value > best:
                    best, best_own, best_slot = value, own, slot
    return best, best_own, best_slot


@kernel
def _swap_between(
    busiest: int, rank: int, budget: int, even: EvenRanks, bound: float, price: float, best: float
) -> tuple[float, int, int]:
    """`_best_swap` with one rank, if it can be better than `best`."""
    slots, top, least = even.slots, even.rank_load[busiest], LEAST * bound
    wanted, gap, room = top - bound, top - even.rank_load[rank], max(bound - even.rank_load[rank], 0.0)
    best_own, best_slot = -1, -1
    if gap <= 2.0 * least or ENOUGH * 0.5 * price * (min(wanted, room) + 0.5 * RELIEF * gap) <= best:
        return 0.0, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        mine = even.phy2log[own]
        weight = even.part[mine]
        for slot in range(rank * slots, (rank + 1) * slots):
            shift = weight - even.part[even.phy2log[slot]]
            if shift < least or gap - shift < least:
                continue
            taken = min(shift, wanted) - max(shift - room, 0.0) - SURPLUS * max(shift - wanted, 0.0)
            value = price * 0.5 * (taken + RELIEF * min(shift, gap - shift))
            if value <= best:
                continue
            theirs = even.phy2log[slot]
            if not (may_hold(even, rank, mine) and may_hold(even, busiest, theirs)):
                continue
            cost = weights_received(even, busiest, theirs, mine) + weights_received(even, rank, mine, theirs)
            if cost <= budget:
                best, best_own, best_slot = value * 2.0 / max(cost, UNDO), own, slot
    return best, best_own, best_slot


@kernel
def _reach(expert: int, even: EvenRanks, bound: float) -> float:
    """Overload that one more copy of an expert takes from the ranks that hold it, before it burdens another."""
    less, taken = even.part[expert] - even.load[expert] / (even.copies[expert] + 1), 0.0
    slot = even.head[expert]
    while slot >= 0:
        taken += min(max(even.rank_load[slot // even.slots] - bound, 0.0), less)
        slot = even.following[slot]
    return taken


@kernel
def _overload_taken(even: EvenRanks, slot: int, expert: int, top: float, bound: float, change: Array) -> float:
    """Overload that `overwrite` takes away; -1 if a rank would reach the busiest. change: [ranks] zeros, scratch."""
    victim, slots = even.phy2log[slot], even.slots
    less = even.part[expert] - even.load[expert] / (even.copies[expert] + 1)
    more = even.load[victim] / (even.copies[victim] - 1) - even.part[victim]
    target = slot // slots
    change[target] += even.part[expert] - less - even.part[victim] - more  # the chain below adds `more` once too often
    for sign in range(2):
        at = even.head[expert] if sign == 0 else even.head[victim]
        while at >= 0:
            change[at // slots] += -less if sign == 0 else more
            at = even.following[at]
    taken, too_high = 0.0, False
    for sign in range(3):
        at = slot if sign == 0 else (even.head[expert] if sign == 1 else even.head[victim])
        while at >= 0:
            rank = at // slots
            before, after = even.rank_load[rank], even.rank_load[rank] + change[rank]
            if change[rank] > 0.0 and after > top - LEAST * bound:
                too_high = True
            taken += max(before - bound, 0.0) - max(after - bound, 0.0)
            change[rank] = 0.0  # counted once
            at = -1 if sign == 0 else even.following[at]
    return -1.0 if too_high else taken


@kernel
def _burden(slot: int, even: EvenRanks, top: float, bound: float) -> tuple[float, int]:
    """What overwriting a redundant slot does to the others that hold its expert: (overload, rank that would exceed
    `top` unless the new expert is one of its own, so that it is relieved as well; -1 = none; more than one: -2).
    """
    victim, burden, at_top = even.phy2log[slot], 0.0, -1
    more = even.load[victim] / (even.copies[victim] - 1) - even.part[victim]
    other = even.head[victim]
    while other >= 0:
        rank = other // even.slots
        load = even.rank_load[rank]
        if other == slot:
            pass
        elif load + more > top:
            at_top = rank if at_top == -1 else -2
        else:
            burden += max(load + more - max(load, bound), 0.0)
        other = even.following[other]
    return burden, at_top


@kernel
def _best_overwrite(
    busiest: int, budget: int, even: EvenRanks, node_of_rank: Array, bound: float, best: float, change: Array
) -> tuple[float, int, int]:
    """(value, expert, redundant slot that is to hold it), if it is better than `best`: another copy of one of the
    busiest rank's experts elsewhere, or another expert in a redundant slot of the busiest rank.
    """
    slots, top, home = even.slots, even.rank_load[busiest], node_of_rank[busiest]
    wanted, least, best_expert, best_slot = top - bound, LEAST * bound, -1, -1
    mine = even.phy2log[busiest * slots : (busiest + 1) * slots]
    every, reach = np.arange(even.load.shape[0], dtype=np.int32), np.full(even.load.shape[0], -1.0)
    most = 0.0
    for expert in mine:
        reach[expert] = _reach(expert, even, bound)
        most = max(most, reach[expert])
    for slot in range(even.phy2log.shape[0]):
        victim, rank = even.phy2log[slot], slot // slots
        here, over = rank == busiest, max(even.rank_load[rank] - bound, 0.0)
        if even.copies[victim] < 2 or (not here and NEAR * (most + over) <= best):
            continue
        price = NEAR if node_of_rank[rank] == home else 1.0
        burden, at_top = _burden(slot, even, top - least, bound)
        if at_top == -2:
            continue
        if not here and price * (most + over - burden) <= best:
            continue
        if not here:
            candidates = mine
        elif at_top < 0:
            candidates = every
        else:
            candidates = even.phy2log[at_top * slots : (at_top + 1) * slots]
        for expert in candidates:
            if at_top < 0 and here and best >= price * wanted:
                break  # any of all experts would do; no search for the one that relieves most ranks besides
            fewer = even.load[expert] / (even.copies[expert] + 1)
            after = even.rank_load[rank] - even.part[victim] + fewer
            relief = (even.part[victim] if here else even.part[expert]) - fewer
            if expert == victim or relief < least or after > top - least:
                continue
            if reach[expert] < 0.0:
                reach[expert] = _reach(expert, even, bound)
            if price * (reach[expert] + over - max(after - bound, 0.0) - burden) <= best:
                continue
            if (at_top >= 0 and not holds(even, at_top, expert)) or not may_hold(even, rank, expert):
                continue
            cost = weights_received(even, rank, expert, victim)
            value = price * _overload_taken(even, slot, expert, top, bound, change) / max(cost, UNDO)
            if value > best and cost <= budget:
                best, best_expert, best_slot = value, expert, slot
    return best, best_expert, best_slot


@kernel
def even_out(load: Array, phy2log: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: int) -> None:
    """Change `phy2log: [P]`, in place, until no rank exceeds the mean by more than `peak_ratio` or no move helps.

    No move makes the busiest rank heavier. budget: most moved slots.
    """
    even = open_even(load, phy2log, slots)
    bound = even.rank_load.mean() * peak_ratio
    change = np.zeros(even.rank_load.shape[0])
    for _ in range(4 * phy2log.shape[0]):
        busiest = int(np.argmax(even.rank_load))
        if even.rank_load[busiest] <= bound or budget < 0:
            break
        # a swap costs two weights: look for one only where no overwrite beats all of them
        swap_value, own, other = 0.5 * NEAR * (even.rank_load[busiest] - bound), -1, -1
        _, expert, slot = _best_overwrite(busiest, budget, even, node_of_rank, bound, swap_value, change)
        if slot < 0:
            swap_value, own, other = _best_swap(busiest, budget, even, node_of_rank, bound)
            _, expert, slot = _best_overwrite(busiest, budget, even, node_of_rank, bound, swap_value, change)
        if slot < 0 and other < 0:
            break
        if slot < 0:
            mine, theirs = phy2log[own], phy2log[other]
            budget -= weights_received(even, busiest, theirs, mine)
            budget -= weights_received(even, other // slots, mine, theirs)
            swap(even, own, other)
        else:
            budget -= weights_received(even, slot // slots, expert, phy2log[slot])
            overwrite(even, slot, expert)


@kernel
def even_layers(
    load: Array, previous: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: Array
) -> Array:
    """load: [L, E]; previous: [L, P]; budget: [L] -> phy2log [L, P] int32, unmoved experts in their old slots."""
    phy2log = previous.copy()
    for layer in range(load.shape[0]):
        even_out(load[layer], phy2log[layer], node_of_rank, slots, peak_ratio, budget[layer])
        phy2log[layer] = keep_slots(phy2log[layer], previous[layer], slots)
    return phy2log


@kernel
def even_balance(load: Array, phy2log: Array, slots: int) -> Array:
    """[L] mean over busiest rank's load, 1.0 where there is no load."""
    balance = np.ones(load.shape[0])
    for layer in range(load.shape[0]):
        rank_load = open_even(load[layer], phy2log[layer], slots).rank_load
        if rank_load.max() > 0.0:
            balance[layer] = rank_load.mean() / rank_load.max()
    return balance
