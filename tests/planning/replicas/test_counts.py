"""How many copies every expert gets, and on which nodes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.replicas.counts import apportion, best_copy, copy_limit, list_copies
from strategies import QUICK


def apportion_slowly(load, slots: int, limit: int) -> list[int]:
    copies = [1] * len(load)
    for _ in range(slots - len(load)):
        open_experts = [e for e in range(len(load)) if copies[e] < limit]
        copies[max(open_experts, key=lambda e: (load[e] / copies[e], -copies[e], -e))] += 1
    return copies


@QUICK
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 20), st.integers(1, 5))
def test_copies_go_to_the_largest_load_per_copy(load: list[int], spare: int, ranks: int):
    slots = len(load) + spare
    limit = copy_limit(len(load), slots, ranks)
    copies = apportion(np.array(load, float), slots, limit)
    assert copies.tolist() == apportion_slowly(load, slots, limit)
    assert copies.sum() == slots
    assert list_copies(copies).tolist() == [e for e, count in enumerate(copies) for _ in range(count)]


def test_zero_loads_share_the_spare_slots():
    assert apportion(np.zeros(4), 10, 4).tolist() == [3, 3, 2, 2]


def chosen(saved, load, copies, free, most: int = 2) -> tuple[int, int]:
    arrays = np.array(saved, float), np.array(load, float), np.array(copies, np.int32), np.array(free)
    return best_copy(*arrays, most, 1.0, np.ones(2))


def test_a_free_slot_goes_to_what_is_too_heavy_then_to_what_saves_most():
    """An expert too heavy for a rank before any saving; where nothing saves, the larger load; no second copy first."""
    assert chosen([[0.0, 0.5], [0.9, 0.0]], [0.1, 0.1], [[1, 0], [0, 1]], [1, 1]) == (1, 0)
    assert chosen([[0.0, 0.5], [0.9, 0.0]], [0.9, 0.1], [[1, 0], [0, 1]], [1, 1]) == (0, 1)
    assert chosen([[0.0, 0.0], [0.0, 0.0]], [0.1, 0.2], [[1, 0], [0, 1]], [1, 1]) == (1, 0)
    assert chosen([[0.0, 0.5], [0.9, 0.0]], [0.1, 0.1], [[1, 0], [0, 1]], [0, 1]) == (0, 1)  # no slot is free there
    assert chosen([[0.0, 0.5], [0.9, 0.0]], [0.1, 0.1], [[2, 1], [1, 2]], [1, 1], most=1) == (-1, -1)
