"""All layers evened out from an old placement, where every copy of an expert serves the same share.

Moves that relieve the busiest rank (`evening.py`) nearly always suffice. Where they do not, because ranks have one or
two slots or experts are few, a full solve tells what can be reached, and the old placement is brought near it: the
copy counts of the full solve first, then swaps.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .even_ranks import may_hold, open_even, overwrite, weights_received
from .evening import even_out
from .packing import solve_balanced
from .relabel import keep_slots
from .replication import apportion, copy_limit

FEW_SLOTS = 2  # on a rank: what can be reached is not known without a full solve
SLACK = 0.005  # a busiest rank this close to the full solve's is as good
CLEARLY = 0.01  # a full solve whose busiest rank is lighter by more than this is worth moving nearly everything


@kernel
def peak_of(load: Array, phy2log: Array, slots: int) -> float:
    """Load of the busiest rank, relative to the mean; 1.0 without load."""
    rank_load = open_even(load, phy2log, slots).rank_load
    return rank_load.max() / rank_load.mean() if rank_load.max() > 0.0 else 1.0


@kernel
def even_balance(load: Array, phy2log: Array, slots: int) -> Array:
    """[L] mean over busiest rank's load, 1.0 where there is no load."""
    balance = np.empty(load.shape[0])
    for layer in range(load.shape[0]):
        balance[layer] = 1.0 / peak_of(load[layer], phy2log[layer], slots)
    return balance


@kernel
def recount(load: Array, phy2log: Array, slots: int, budget: int) -> int:
    """Change `phy2log: [P]`, in place, to the copy counts of a full solve: experts with most load per copy first, each
    into the slot that can be spared on the lightest rank. -> budget left.
    """
    size = phy2log.shape[0]
    even, wanted = open_even(load, phy2log, slots), apportion(load, size, copy_limit(load.shape[0], size, size // slots))
    while budget > 0:
        expert, heaviest = -1, -1.0
        for other in range(load.shape[0]):
            if even.copies[other] < wanted[other] and even.part[other] > heaviest:
                expert, heaviest = other, even.part[other]
        if expert < 0:
            break
        chosen, lightest = -1, np.inf
        for slot in range(size):
            victim, rank = phy2log[slot], even.rank_of[slot]
            if even.copies[victim] > wanted[victim] and may_hold(even, rank, expert):
                left = even.rank_load[rank] - even.weight[slot]
                if left < lightest:
                    chosen, lightest = slot, left
        if chosen < 0:
            break
        budget -= weights_received(even, even.rank_of[chosen], expert, phy2log[chosen])
        overwrite(even, chosen, expert)
    return budget


@kernel
def _approach(load: Array, old: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: int) -> Array:
    """`old: [P]` with the copy counts of a full solve, evened out as far as `peak_ratio`."""
    phy2log = old.copy()
    left = recount(load, phy2log, slots, budget)
    left = even_out(load, phy2log, node_of_rank, slots, peak_ratio, left, False)
    even_out(load, phy2log, node_of_rank, slots, peak_ratio, left, True)
    return phy2log


@kernel
def even_layers(
    load: Array, previous: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: Array
) -> tuple[Array, Array]:
    """load: [L, E]; previous: [L, P]; budget: [L] most moved slots -> phy2log [L, P] int32, unmoved experts in their old
    slots; [L] bool: whether the target was missed and a full solve would be clearly better.
    """
    phy2log, is_poor = previous.copy(), np.zeros(load.shape[0], np.bool_)
    for layer in range(load.shape[0]):
        mine, reachable = load[layer : layer + 1], 0.0
        if slots <= FEW_SLOTS:
            reachable = peak_of(load[layer], solve_balanced(mine, previous.shape[1], len(node_of_rank))[0], slots)
        if reachable <= peak_ratio:
            even_out(load[layer], phy2log[layer], node_of_rank, slots, peak_ratio, budget[layer], True)
        peak = peak_of(load[layer], phy2log[layer], slots)
        if peak > peak_ratio * (1.0 + SLACK):
            if reachable == 0.0:
                reachable = peak_of(load[layer], solve_balanced(mine, previous.shape[1], len(node_of_rank))[0], slots)
            goal = max(reachable * (1.0 + SLACK), peak_ratio)
            if peak > goal:
                second = _approach(load[layer], previous[layer], node_of_rank, slots, goal, budget[layer])
                second_peak = peak_of(load[layer], second, slots)
                if second_peak < peak:
                    phy2log[layer], peak = second, second_peak
            is_poor[layer] = peak > max(reachable * (1.0 + CLEARLY), peak_ratio)
        phy2log[layer] = keep_slots(phy2log[layer], previous[layer], slots)
    return phy2log, is_poor
