"""Slots of equal shares, kept up to date while experts move: always those opened anew."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.balanced.state import (
    EvenRanks,
    may_hold,
    open_even,
    overwrite,
    swap,
    swap_cost,
    weights_received,
)
from strategies import QUICK

RANKS, SLOTS, EXPERTS = 3, 3, 6


def moved(old, new) -> int:
    """Experts that ranks had to receive."""
    rows = zip(old.reshape(RANKS, SLOTS).tolist(), new.reshape(RANKS, SLOTS).tolist(), strict=True)
    return sum((Counter(after) - Counter(before)).total() for before, after in rows)


def worth(even: EvenRanks, slot: int) -> float:
    """Moved slots that taking a copy away would save, and the slot that it frees."""
    return 2.0 if even.gained[even.rank_of[slot], even.expert[slot]] > 0 else 1.0


def check(even: EvenRanks, load, old) -> None:
    """Everything that is kept is what the slots say."""
    held = even.phy2log
    copies = np.bincount(held, minlength=EXPERTS)
    assert np.array_equal(even.expert, held)
    assert np.array_equal(even.copies, copies)
    np.testing.assert_allclose(even.weight, (load / copies)[held])
    np.testing.assert_allclose(even.rank_load, even.weight.reshape(RANKS, SLOTS).sum(axis=1))
    for expert in range(EXPERTS):
        slot, chain = even.head[expert], []
        while slot >= 0:
            chain.append(int(slot))
            slot = even.following[slot]
        assert sorted(chain) == np.flatnonzero(held == expert).tolist()
        for rank in range(RANKS):
            there = expert in held.reshape(RANKS, SLOTS)[rank]
            assert may_hold(even, rank, expert) == (not there)
    gained = [np.bincount(row, minlength=EXPERTS) for row in held.reshape(RANKS, SLOTS)]
    before = [np.bincount(row, minlength=EXPERTS) for row in old.reshape(RANKS, SLOTS)]
    assert np.array_equal(even.gained, np.array(gained) - np.array(before))


@QUICK
@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=6))
def test_moves_keep_everything_up_to_date(seed: int, moves: list[tuple[int, int, bool]]):
    """Swaps between ranks, and copies more in place of redundant ones; costs are the moved slots that they change."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, RANKS * SLOTS - EXPERTS)])
    old, load = rng.permutation(slots).astype(np.int32), rng.random(EXPERTS) + 0.1
    even = open_even(load, old.copy(), SLOTS)
    assert not even.twins_allowed
    check(even, load, old)
    for first, second, swaps in moves:
        before, mine, theirs = moved(old, even.phy2log), even.expert[first], even.expert[second]
        if swaps and even.rank_of[first] != even.rank_of[second] and mine != theirs:
            cost = swap_cost(even, first, second)
            swap(even, first, second)
            assert [even.worth[slot] for slot in (first, second)] == [worth(even, slot) for slot in (first, second)]
            assert moved(old, even.phy2log) - before == cost
        elif not swaps and mine != theirs and even.copies[mine] > 1:
            cost = weights_received(even, even.rank_of[first], theirs, mine)
            overwrite(even, first, theirs)
            assert even.worth[first] == worth(even, first)
            assert moved(old, even.phy2log) - before == cost
        check(even, load, old)


def test_more_slots_on_a_rank_than_experts_make_twins():
    """Only then may a rank take an expert that it has."""
    even = open_even(np.ones(2), np.array([0, 1, 0, 1, 0, 1], np.int32), 3)
    assert even.twins_allowed
    assert may_hold(even, 0, 0)
