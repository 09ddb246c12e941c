"""The exchange of a redundant copy that is worth most, and what never leaves."""

from __future__ import annotations

import numpy as np

from eplb_plugin.planning.replicas.exchange import best_exchange


def test_a_copy_that_its_rank_needs_does_not_leave():
    saved, lost = np.array([[0.0], [5.0]]), np.zeros((2, 1))
    copies = np.array([[2], [0]], np.int32)
    barred = np.zeros((2, 1), np.bool_)
    assert best_exchange(saved, lost, np.array([1.0, 1.0]), copies, barred, 2.0) == (5.0, 0, 1, 0)
    assert best_exchange(saved, lost, np.array([2.0, 1.0]), copies, barred, 2.0)[0] == 0.0
    barred[1] = True
    assert best_exchange(saved, lost, np.array([1.0, 1.0]), copies, barred, 2.0)[0] == 0.0


def test_the_exchange_with_the_largest_gain_on_any_node():
    """What comes saves most on its node, what leaves is missed least there, for nothing where it has a twin."""
    saved = np.array([[9.0, 0.0], [0.0, 0.0], [1.0, 7.0]])
    lost = np.array([[0.0, 4.0], [2.0, 2.0], [0.0, 0.0]])
    copies, barred = np.array([[0, 2], [1, 1], [1, 0]], np.int32), np.zeros((3, 2), np.bool_)
    load = np.full(3, 0.1)
    assert best_exchange(saved, lost, load, copies, barred, 1.0) == (7.0, 1, 0, 0)
    copies[1] = [2, 0]
    assert best_exchange(saved, lost, load, copies, barred, 1.0) == (9.0, 1, 0, 0)
    barred[0, 0] = True
    assert best_exchange(saved, lost, load, copies, barred, 1.0) == (7.0, 0, 2, 1)
    assert best_exchange(saved * 0.0, lost, load, copies, barred, 1.0)[0] == 0.0
