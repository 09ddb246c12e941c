"""A recording in two halves: nothing is lost, and the steps go with their tokens."""

from __future__ import annotations

import numpy as np

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.halves import split, whole_steps


def test_loads_alone_are_split_by_drawing() -> None:
    """Every selection goes to one of the halves."""
    window = RoutingStatistics(np.arange(1, 65).reshape(2, 32) * 100)
    first, second = split(window)
    np.testing.assert_array_equal(first.load + second.load, window.load)
    assert first.steps is None


def test_tokens_are_split_in_their_order_and_cut_into_steps() -> None:
    rows = np.arange(50).reshape(1, 50, 1) % 7
    window = RoutingStatistics.from_topk(rows, 7)
    for half, part in zip(split(window, 10), (rows[:, :25], rows[:, 25:]), strict=True):
        np.testing.assert_array_equal(half.sample, part)
        np.testing.assert_array_equal(half.steps.sum(axis=2).ravel(), [10, 10, 5])
        np.testing.assert_array_equal(half.steps.sum(axis=0), half.load)


def test_a_step_that_no_half_has_whole_is_not_known() -> None:
    """Rows that no layer filled do not count."""
    rows = np.arange(52).reshape(1, 52, 1) % 7
    rows[0, :2] = -1
    window = RoutingStatistics.from_topk(rows, 7)
    assert [whole_steps(window, tokens) for tokens in (None, 0.2, 24.6, 26.0)] == [None, 1, 25, None]
    assert whole_steps(RoutingStatistics(window.load), 1.0) is None


def test_recorded_steps_are_split_in_their_order() -> None:
    """Where it is not said which tokens are one step's; with a sample of tokens and without."""
    steps = np.random.default_rng(0).integers(0, 9, (5, 1, 7))
    rows = np.arange(50).reshape(1, 50, 1) % 7
    sampled = RoutingStatistics.from_topk(rows, 7)
    for window in (
        RoutingStatistics(steps.sum(axis=0), steps=steps),
        RoutingStatistics(steps.sum(axis=0), sample=sampled.sample, steps=steps),
    ):
        first, second = split(window)
        np.testing.assert_array_equal(first.steps, steps[:2])
        np.testing.assert_array_equal(second.steps, steps[2:])
