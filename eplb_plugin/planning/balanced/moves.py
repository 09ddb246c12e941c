"""Even out the ranks by few moves where every copy of an expert serves the same share and nodes do not matter.

Always relieve the busiest rank, by the move that takes away most overload per weight that a rank must receive: a swap
of two slots, or a redundant slot overwritten by another expert. Overload is what ranks have beyond the bound, summed.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from .state import EvenRanks, may_hold, open_even, overwrite, swap, swap_cost, weights_received

LEAST = 1e-4  # of the bound: what a move must take from the busiest rank
SURPLUS = 0.02  # what a unit of load counts that a swap shifts beyond need …
RELIEF = 0.001  # … and one that leaves the busiest rank while the pair remains overloaded
NEAR = 1.1  # a move inside a node is worth this much more
ENOUGH = 0.9  # of what a swap can gain at best: no search for more


@kernel
def _swap_value(shift: float, wanted: float, room: float, gap: float) -> float:
    """Overload that two ranks lose if `shift` goes from the busiest to the other, less what is shifted in vain."""
    beyond = shift - wanted if shift > wanted else 0.0
    burden = shift - room if shift > room else 0.0
    relief = shift if shift < gap - shift else gap - shift
    return shift - burden - (1.0 + SURPLUS) * beyond + RELIEF * relief


@kernel
def _best_swap(
    busiest: int, budget: int, even: EvenRanks, node_of_rank: Array, bound: float, least: float
) -> tuple[float, int, int]:
    """(value, slot of the busiest rank, other slot); value 0.0 if no swap helps, or none can be worth `least`.

    All pairs of slots in plain loops over arrays, which compilers turn into vector code.
    """
    size, slots, top = even.phy2log.shape[0], even.slots, even.rank_load[busiest]
    first, wanted = busiest * slots, top - bound
    if slots == 1 or least >= 0.5 * NEAR * wanted:
        return 0.0, -1, -1
    # what every slot's rank could take, and which slots may change with the busiest rank at all
    room, gap, open_, best = np.empty(size), np.empty(size), even.worth.copy(), np.zeros(size)
    for slot in range(size):
        load = even.rank_load[even.rank_of[slot]]
        gap[slot] = top - load
        room[slot] = bound - load if bound > load else 0.0
    for own in range(first, first + slots):
        open_[own] = 0.0
        twin = even.head[even.expert[own]]
        while twin >= 0 and not even.twins_allowed:
            open_[twin] = 0.0
            twin = even.following[twin]
    # every slot's best value over the slots of the busiest rank
    for own in range(first, first + slots):
        mine, weight, worth = even.expert[own], even.weight[own], even.worth[own]
        fits = open_
        if (even.copies[mine] > 1 and not even.twins_allowed) or budget < 2:
            fits = _fitting(own, budget, even, open_)
        for slot in range(size):
            shift = weight - even.weight[slot]
            value = _swap_value(shift, wanted, room[slot], gap[slot]) * fits[slot] * worth
            best[slot] = value if value > best[slot] else best[slot]
    # the best slot, and then which of the busiest rank's it was
    most, other = RELIEF * LEAST * bound, -1
    for slot in range(size):
        if best[slot] > 0.0:
            value = best[slot] * (NEAR if node_of_rank[even.rank_of[slot]] == node_of_rank[busiest] else 1.0)
            if value > most:
                most, other = value, slot
    if other < 0:
        return 0.0, -1, -1
    for own in range(first, first + slots):
        value = _swap_value(even.weight[own] - even.weight[other], wanted, room[other], gap[other])
        is_best = value * open_[other] * even.worth[own] == best[other]
        if is_best and may_hold(even, even.rank_of[other], even.expert[own]) and swap_cost(even, own, other) <= budget:
            return 0.5 * most, own, other
    return 0.0, -1, -1


@kernel
def _fitting(own: int, budget: int, even: EvenRanks, open_: Array) -> Array:
    """`open_` without the slots that may not take the expert of slot `own`, or not within the budget."""
    fits = open_.copy()
    for slot in range(fits.shape[0]):
        if 4.0 - even.worth[own] - even.worth[slot] > budget:
            fits[slot] = 0.0
    twin = even.head[even.expert[own]]
    while twin >= 0 and not even.twins_allowed:
        rank = even.rank_of[twin]
        fits[rank * even.slots : (rank + 1) * even.slots] = 0.0
        twin = even.following[twin]
    return fits


@kernel
def _reach(expert: int, busiest: int, even: EvenRanks, bound: float) -> float:
    """Overload that one more copy of an expert takes from the ranks that hold it, other than the busiest, before it
    burdens another.
    """
    less, taken = even.part[expert] / (even.copies[expert] + 1), 0.0
    slot = even.head[expert]
    while slot >= 0:
        rank = even.rank_of[slot]
        taken += min(max(even.rank_load[rank] - bound, 0.0), less) if rank != busiest else 0.0
        slot = even.following[slot]
    return taken


@kernel
def _best_overwrite(
    busiest: int, budget: int, even: EvenRanks, node_of_rank: Array, bound: float
) -> tuple[float, int, int]:
    """(value, expert, redundant slot that is to hold it), value 0.0 if none helps: another copy of one of the busiest
    rank's experts elsewhere, or another expert in a redundant slot of the busiest rank.
    """
    slots, top, home = even.slots, even.rank_load[busiest], node_of_rank[busiest]
    wanted, least = top - bound, LEAST * bound
    best, best_expert, best_slot = 0.0, -1, -1
    # what a further copy of each of the busiest rank's experts takes off it
    mine = even.expert[busiest * slots : (busiest + 1) * slots]
    reach, less, most = np.empty(slots), np.empty(slots), 0.0
    for place in range(slots):
        reach[place] = _reach(mine[place], busiest, even, bound)
        less[place] = even.part[mine[place]] / (even.copies[mine[place]] + 1)
        most = max(most, reach[place] + min(less[place], wanted))
    for victim in range(even.load.shape[0]):
        if even.copies[victim] < 2:
            continue
        # what the ranks that keep a copy of the victim must take over
        more, burden, too_high, own = even.part[victim] / (even.copies[victim] - 1), 0.0, 0, 0.0
        slot = even.head[victim]
        while slot >= 0:
            load = even.rank_load[even.rank_of[slot]]
            if even.rank_of[slot] == busiest:
                own += more
            else:
                burden += max(load + more - max(load, bound), 0.0)
                too_high += 1 if load + more > top - least else 0
            slot = even.following[slot]
        slot = even.head[victim]
        while slot >= 0:
            # the victim's slot on this rank goes to another expert
            rank = even.rank_of[slot]
            load = even.rank_load[rank]
            freed, over = load - even.part[victim], max(load - bound, 0.0)
            price = even.worth[slot] * (NEAR if node_of_rank[rank] == home else 1.0)
            if rank == busiest and too_high == 0:
                value, expert = _lighter(slot, best / price + burden, busiest, even, bound, top - least)
                value = price * (value - burden) if expert >= 0 else 0.0
                if value > best and weights_received(even, rank, expert, victim) <= budget:
                    best, best_expert, best_slot = value, expert, slot
            elif rank != busiest and too_high == (1 if load + more > top - least else 0):
                kept = burden - max(load + more - max(load, bound), 0.0)
                for place in range(slots):
                    if price * (most + over - kept) <= best:
                        break
                    expert, after = mine[place], freed + even.part[mine[place]] - less[place]
                    taken = min(less[place] - own, wanted) + reach[place]
                    value = price * (taken - kept + over - max(after - bound, 0.0))
                    if value <= best or max(after, top - less[place] + own) > top - least or expert == victim:
                        continue
                    if may_hold(even, rank, expert) and weights_received(even, rank, expert, victim) <= budget:
                        best, best_expert, best_slot = value, expert, slot
            slot = even.following[slot]
    return best, best_expert, best_slot


@kernel
def _lighter(
    slot: int, least_value: float, busiest: int, even: EvenRanks, bound: float, ceiling: float
) -> tuple[float, int]:
    """(overload taken, expert) of an expert for a slot of the busiest rank, if it takes more than `least_value`: the
    first that brings the rank below the bound, else the best.
    """
    wanted, freed = even.rank_load[busiest] - bound, even.rank_load[busiest] - even.weight[slot]
    best, chosen = least_value, -1
    for expert in range(even.load.shape[0]):
        if best >= wanted:
            break
        after = freed + even.load[expert] / (even.copies[expert] + 1)
        if after > ceiling or expert == even.expert[slot] or not may_hold(even, busiest, expert):
            continue
        value = wanted - max(after - bound, 0.0) + _reach(expert, busiest, even, bound)
        if value > best:
            best, chosen = value, expert
    return best, chosen


@kernel
def even_out(load: Array, phy2log: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: int) -> None:
    """Change `phy2log: [P]`, in place, until no rank exceeds the mean by more than `peak_ratio` or no move helps.

    No move makes the busiest rank heavier. budget: most moved slots.
    """
    even = open_even(load, phy2log, slots)
    bound = load.sum() / even.rank_load.shape[0] * peak_ratio
    for _ in range(4 * phy2log.shape[0]):
        busiest = int(np.argmax(even.rank_load))
        top = even.rank_load[busiest]
        if top <= bound:
            break
        value, expert, slot = _best_overwrite(busiest, budget, even, node_of_rank, bound)
        swap_value, own, other = _best_swap(busiest, budget, even, node_of_rank, bound, value)
        if swap_value > value:
            budget -= swap_cost(even, own, other)
            swap(even, own, other)
            continue
        if slot < 0:
            break
        victim = even.expert[slot]
        budget -= weights_received(even, even.rank_of[slot], expert, victim)
        overwrite(even, slot, expert)
        if even.rank_load.max() > top:  # several copies on one rank: more than was reckoned with
            overwrite(even, slot, victim)
            break


@kernel
def swap_out(load: Array, phy2log: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: int) -> None:
    """As `even_out`, with the copy counts as they are."""
    even = open_even(load, phy2log, slots)
    bound = load.sum() / even.rank_load.shape[0] * peak_ratio
    for _ in range(4 * phy2log.shape[0]):
        busiest = int(np.argmax(even.rank_load))
        if even.rank_load[busiest] <= bound:
            break
        _, own, other = _best_swap(busiest, budget, even, node_of_rank, bound, 0.0)
        if other < 0:
            break
        budget -= swap_cost(even, own, other)
        swap(even, own, other)
