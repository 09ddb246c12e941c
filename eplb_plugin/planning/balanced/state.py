"""One layer's slots where every copy of an expert serves the same share: `moves/ranks.py` without nodes, for speed.

The slots of an expert form a chain, so that what a move changes is found without a look at the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel


class EvenRanks(NamedTuple):
    """load, part: [E] of an expert and of each of its copies; head, copies: [E] first slot and number of slots.
    phy2log: [P] int32, the result; expert, following, rank_of: [P] int64 (one type of ids, or every kernel is compiled
    for both) expert of a slot, the next slot of that expert (-1 = none), and its rank;
    weight: [P] load of the copy in a slot; worth: [P] 2.0 where the rank had to receive it, so that taking it away
    saves a move, else 1.0. rank_load: [ranks]; gained: [ranks, E] int16 copies more than at the start;
    slots: per rank; twins_allowed: more slots on a rank than experts.
    """

    load: Array
    part: Array
    phy2log: Array
    expert: Array
    following: Array
    rank_of: Array
    head: Array
    copies: Array
    weight: Array
    worth: Array
    rank_load: Array
    gained: Array
    slots: int
    twins_allowed: bool


@kernel
def open_even(load: Array, phy2log: Array, slots: int) -> EvenRanks:
    """`phy2log` is changed in place by the moves; moved slots are counted from here."""
    experts, size = load.shape[0], phy2log.shape[0]
    copies, head = np.zeros(experts, np.int64), np.full(experts, -1, np.int64)
    following, rank_of, expert_of = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    for slot in range(size - 1, -1, -1):
        expert = phy2log[slot]
        expert_of[slot] = expert
        following[slot] = head[expert]
        head[expert] = slot
        copies[expert] += 1
    part, weight, rank_load = np.empty(experts), np.empty(size), np.zeros(size // slots)
    for expert in range(experts):
        part[expert] = load[expert] / copies[expert]
    for rank in range(rank_load.shape[0]):
        for slot in range(rank * slots, (rank + 1) * slots):
            rank_of[slot] = rank
            weight[slot] = part[phy2log[slot]]
            rank_load[rank] += weight[slot]
    gained = np.zeros((rank_load.shape[0], experts), np.int16)
    return EvenRanks(
        load, part, phy2log, expert_of, following, rank_of, head, copies, weight, np.ones(size), rank_load, gained,
        slots, slots > experts,
    )  # fmt: skip


@kernel
def may_hold(even: EvenRanks, rank: int, expert: int) -> bool:
    """Whether `rank` may take a copy: it has none yet, or twins cannot be avoided."""
    slot = -1 if even.twins_allowed else even.head[expert]
    while slot >= 0:
        if even.rank_of[slot] == rank:
            return False
        slot = even.following[slot]
    return True


@kernel
def weights_received(even: EvenRanks, rank: int, incoming: int, outgoing: int) -> int:
    """Change of the moved slots if `rank` takes `incoming` in place of `outgoing`."""
    cost = 1 if even.gained[rank, incoming] >= 0 else 0
    return cost - (1 if even.gained[rank, outgoing] > 0 else 0)


@kernel
def swap_cost(even: EvenRanks, first: int, second: int) -> int:
    """Change of the moved slots if two ranks exchange the experts of two slots."""
    mine, theirs = even.expert[first], even.expert[second]
    cost = weights_received(even, even.rank_of[first], theirs, mine)
    return cost + weights_received(even, even.rank_of[second], mine, theirs)


@kernel
def _relink(even: EvenRanks, slot: int, expert: int) -> None:
    """Put `expert` into `slot`; loads are the caller's."""
    rank, previous = even.rank_of[slot], even.expert[slot]
    even.gained[rank, previous] -= 1
    even.gained[rank, expert] += 1
    even.worth[slot] = 2.0 if even.gained[rank, expert] > 0 else 1.0
    if even.head[previous] == slot:
        even.head[previous] = even.following[slot]
    else:
        before = even.head[previous]
        while even.following[before] != slot:
            before = even.following[before]
        even.following[before] = even.following[slot]
    even.following[slot] = even.head[expert]
    even.head[expert] = slot
    even.expert[slot], even.phy2log[slot] = expert, expert


@kernel
def swap(even: EvenRanks, first: int, second: int) -> None:
    mine, theirs = even.expert[first], even.expert[second]
    shift = even.part[mine] - even.part[theirs]
    _relink(even, first, theirs)
    _relink(even, second, mine)
    even.weight[first], even.weight[second] = even.weight[second], even.weight[first]
    even.rank_load[even.rank_of[first]] -= shift
    even.rank_load[even.rank_of[second]] += shift


@kernel
def _weigh(even: EvenRanks, expert: int) -> None:
    """Every copy of an expert serves its share again, after their number has changed."""
    part = even.load[expert] / even.copies[expert]
    even.part[expert] = part
    slot = even.head[expert]
    while slot >= 0:
        even.rank_load[even.rank_of[slot]] += part - even.weight[slot]
        even.weight[slot] = part
        slot = even.following[slot]


@kernel
def overwrite(even: EvenRanks, slot: int, expert: int) -> None:
    """One more copy of `expert` in a redundant slot."""
    victim = even.expert[slot]
    even.copies[victim] -= 1
    even.copies[expert] += 1
    _relink(even, slot, expert)
    _weigh(even, victim)
    _weigh(even, expert)
