"""One layer's slots where every copy of an expert serves the same share: `ranks.py` without nodes, for speed.

The slots of an expert form a chain, so that what a move changes is found without a look at the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import Array, kernel


class EvenRanks(NamedTuple):
    """load, part: [E] of an expert and of each of its copies; phy2log, following: [P] expert of a slot, and the next
    slot of that expert, -1 = none; head, copies: [E] first slot and number of slots; rank_load: [ranks];
    gained: [ranks, E] int16 copies more than at the start; slots: per rank; twins_allowed: more slots on a rank than
    experts.
    """

    load: Array
    part: Array
    phy2log: Array
    following: Array
    head: Array
    copies: Array
    rank_load: Array
    gained: Array
    slots: int
    twins_allowed: bool


@kernel
def open_even(load: Array, phy2log: Array, slots: int) -> EvenRanks:
    """`phy2log` is changed in place by the moves; moved slots are counted from here."""
    experts, ranks = load.shape[0], phy2log.shape[0] // slots
    copies, head = np.zeros(experts, np.int32), np.full(experts, -1, np.int32)
    following = np.empty(phy2log.shape[0], np.int32)
    for slot in range(phy2log.shape[0] - 1, -1, -1):
        expert = phy2log[slot]
        following[slot] = head[expert]
        head[expert] = slot
        copies[expert] += 1
    part, rank_load = load / copies, np.zeros(ranks)
    for slot in range(phy2log.shape[0]):
        rank_load[slot // slots] += part[phy2log[slot]]
    gained = np.zeros((ranks, experts), np.int16)
    return EvenRanks(load, part, phy2log, following, head, copies, rank_load, gained, slots, slots > experts)


@kernel
def holds(even: EvenRanks, rank: int, expert: int) -> bool:
    slot = even.head[expert]
    while slot >= 0:
        if slot // even.slots == rank:
            return True
        slot = even.following[slot]
    return False


@kernel
def may_hold(even: EvenRanks, rank: int, expert: int) -> bool:
    """Whether `rank` may take a copy: it has none yet, or twins cannot be avoided."""
    return even.twins_allowed or not holds(even, rank, expert)


@kernel
def weights_received(even: EvenRanks, rank: int, incoming: int, outgoing: int) -> int:
    """Change of the moved slots if `rank` takes `incoming` in place of `outgoing`."""
    cost = 1 if even.gained[rank, incoming] >= 0 else 0
    return cost - (1 if even.gained[rank, outgoing] > 0 else 0)


@kernel
def _relink(even: EvenRanks, slot: int, expert: int) -> None:
    """Put `expert` into `slot`; loads are the caller's."""
    rank, previous = slot // even.slots, even.phy2log[slot]
    even.gained[rank, previous] -= 1
    even.gained[rank, expert] += 1
    if even.head[previous] == slot:
        even.head[previous] = even.following[slot]
    else:
        before = even.head[previous]
        while even.following[before] != slot:
            before = even.following[before]
        even.following[before] = even.following[slot]
    even.following[slot] = even.head[expert]
    even.head[expert] = slot
    even.phy2log[slot] = expert


@kernel
def swap(even: EvenRanks, first: int, second: int) -> None:
    mine, theirs = even.phy2log[first], even.phy2log[second]
    shift = even.part[mine] - even.part[theirs]
    _relink(even, first, theirs)
    _relink(even, second, mine)
    even.rank_load[first // even.slots] -= shift
    even.rank_load[second // even.slots] += shift


@kernel
def _add(even: EvenRanks, expert: int, amount: float) -> None:
    slot = even.head[expert]
    while slot >= 0:
        even.rank_load[slot // even.slots] += amount
        slot = even.following[slot]


@kernel
def overwrite(even: EvenRanks, slot: int, expert: int) -> None:
    """One more copy of `expert` in a redundant slot."""
    victim = even.phy2log[slot]
    _add(even, victim, -even.part[victim])
    _add(even, expert, -even.part[expert])
    _relink(even, slot, expert)
    even.copies[victim] -= 1
    even.copies[expert] += 1
    even.part[victim] = even.load[victim] / even.copies[victim]
    even.part[expert] = even.load[expert] / even.copies[expert]
    _add(even, victim, even.part[victim])
    _add(even, expert, even.part[expert])
