"""Moved slots: counted as a rank would, and shared out among layers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.planning.moves.budget import NO_LIMIT, Allowed, count_moved, share_out
from strategies import QUICK


@QUICK
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4))
def test_a_rank_receives_what_it_did_not_hold(seed: int, ranks: int, slots: int):
    """Experts that a rank holds more often than before, however its slots are ordered; each layer by itself."""
    rng = np.random.default_rng(seed)
    new, old = (rng.integers(0, 5, (3, ranks * slots)).astype(np.int32) for _ in range(2))
    expected = [
        sum(
            (Counter(after.tolist()) - Counter(before.tolist())).total()
            for after, before in zip(one.reshape(ranks, slots), other.reshape(ranks, slots), strict=True)
        )
        for one, other in zip(new, old, strict=True)
    ]
    assert count_moved(new, old, ranks, 5).tolist() == expected


def test_the_neediest_layers_come_first():
    allowed, need, order, old = Allowed(None, 10, Topology(1, 2, 2), 4), np.array([1.0, 0.0, 3.0]), [], np.arange(4)
    for layer, budget in allowed.in_turn(need):
        order.append((layer, budget))
        allowed.spend(np.array([2, 3, 0, 1]) if layer == 2 else old, old)
    assert order == [(2, 8), (0, 6), (1, 6)]  # 4 of 8 used; all that is left goes on, also to the one in no need


@pytest.mark.parametrize(
    ("cap", "total", "expected"),
    [(None, None, NO_LIMIT), (3, None, 3), (None, 7, 7), (3, 7, 3), (0, 7, 0), (3, 0, 0)],
)
def test_the_narrower_bound_holds(cap: int | None, total: int | None, expected: int):
    """Of one layer alone; no bound at all is none."""
    assert list(Allowed(cap, total, Topology(1, 2, 2), 4).in_turn(np.array([2.0]))) == [(0, expected)]


@QUICK
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 40))
def test_shares_are_in_proportion(wanted: list[int], total: int):
    """Never more than wanted, all of it or the total, and within one of the exact share."""
    shares = share_out(np.array(wanted), total)
    assert shares.sum() == min(total, sum(wanted))
    assert (shares <= wanted).all()
    exact = np.array(wanted) * min(total / max(sum(wanted), 1), 1.0)
    assert (np.abs(shares - exact) < 1.0).all()
