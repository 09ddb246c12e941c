"""The limits are those of the numbers that hold what they bound."""

from __future__ import annotations

import numpy as np

from eplb_plugin import limits


def test_a_replica_of_cover_fits_into_one_int32() -> None:
    """The largest weight, node and slot together: no field runs into the next, none into the sign."""
    weight, node, slot = limits.MOST_WEIGHT, limits.MOST_NODES - 1, limits.MOST_SLOTS - 1
    packed = slot << limits.SLOT_SHIFT | node << limits.NODE_SHIFT | weight
    assert packed <= np.iinfo(np.int32).max
    assert packed & (1 << limits.NODE_SHIFT) - 1 == weight
    assert packed >> limits.NODE_SHIFT & (1 << limits.SLOT_SHIFT - limits.NODE_SHIFT) - 1 == node
    assert packed >> limits.SLOT_SHIFT == slot


def test_a_set_of_nodes_is_a_positive_int64() -> None:
    """Every node has a bit, and one more is free, so that sets can be counted up to."""
    assert np.iinfo(np.int64).max >= 1 << limits.MOST_NODES


def test_ids_fit_and_leave_room_for_none() -> None:
    """An expert's id in int16 beside -1; as many experts as there are ids."""
    assert np.iinfo(np.int16).max == limits.MOST_EXPERTS


def test_sums_of_counts_stay_finite() -> None:
    """Squares of the largest of a million counts, and of the least, are floats still."""
    assert np.isfinite(limits.MOST_COUNT**2 * 1e6)
    assert limits.LEAST_COUNT**2 / 1e6 > 0
