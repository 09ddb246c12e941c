"""The order of arms over rounds: nobody has a better place than another."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from eplb_plugin.bench.rounds import rotated


def test_without_arms_there_is_no_order() -> None:
    assert rotated([], 3) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_arm_takes_every_place_equally_often(count: int) -> None:
    arms = list(range(count))
    orders = [rotated(arms, turn) for turn in range(2 * count)]
    assert all(sorted(order) == arms for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {2}


def test_no_arm_always_follows_the_same_one() -> None:
    before = {0: set(), 1: set(), 2: set()}
    for turn in range(6):
        order = rotated([0, 1, 2], turn)
        for first, second in pairwise(order):
            before[second].add(first)
    assert before == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}}
