"""Figures averaged over random source ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin import Placement, RoutingStatistics, Topology
from eplb_plugin.observe.judging import average, evened_steps, judge_draws, judge_steps, recorded_steps
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import judge_layers


def test_figures_are_the_mean_over_draws() -> None:
    """Each draw has its own sources, the same for the same seed; another seed gives others."""
    rows = np.argsort(np.random.default_rng(0).random((2, 300, 8)), axis=2)[:, :, :2]
    made = plan_of(linear_placement(2, 8, 8), Topology(2, 2, 2), "hash")
    sources = [np.random.default_rng([5, draw]).integers(0, 4, 300) for draw in range(3)]
    single = [judge_layers(rows, source, made) for source in sources]
    found = judge_draws(rows, made, 3, 5)
    for name in ("balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress"):
        expected = sum(getattr(one, name) for one in single) / 3
        np.testing.assert_allclose(getattr(found, name), expected)
        np.testing.assert_allclose(getattr(average(single), name), expected)
    assert not np.array_equal(judge_draws(rows, made, 3, 6).cross_node_copies, found.cross_node_copies)
    assert np.array_equal(judge_draws(rows, made, 1, 5).cross_node_copies, single[0].cross_node_copies)


def test_one_step_of_all_tokens_is_the_window() -> None:
    """And of many steps what is counted over all of them is the window's, where the choice looks at no position."""
    rows = np.argsort(np.random.default_rng(1).random((2, 300, 8)), axis=2)[:, :, :2]
    made = plan_of(linear_placement(2, 8, 8), Topology(2, 2, 2), "hash")  # no replicas: one slot an expert
    window = judge_draws(rows, made, 2, 3)
    for step_tokens in (300, 60):
        scores = judge_steps(rows, made, step_tokens, 2, 3)
        for name in ("balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress"):
            np.testing.assert_allclose(getattr(scores, name), getattr(window, name))
        if step_tokens == 300:
            # layers of equally many selections: mean over max of their sums
            assert scores.step_balancedness == pytest.approx(1 / (1 / window.balancedness).mean(), rel=1e-3)
        else:
            assert scores.step_balancedness < window.balancedness.min()
    assert window.step_balancedness is None


def test_tokens_behind_the_last_whole_step_are_left_out() -> None:
    rows = np.argsort(np.random.default_rng(2).random((1, 250, 8)), axis=2)[:, :, :2]
    made = plan_of(linear_placement(1, 8, 8), Topology(2, 2, 2), "hash")
    sources = np.random.default_rng([3, 0]).integers(0, 4, 250)[:200]
    scores = judge_steps(rows, made, 100, 1, 3)
    np.testing.assert_allclose(scores.cross_node_copies, judge_layers(rows[:, :200], sources, made).cross_node_copies)


def test_recorded_steps_are_judged_by_their_loads() -> None:
    """By hand, two ranks with an expert on both: even by shares in the window alone, by quotas in every step."""
    steps = np.array([[[8, 0, 4]], [[0, 8, 4]]])
    window = RoutingStatistics(steps.sum(axis=0), steps=steps)
    made = plan_of(Placement(np.array([[0, 2, 1, 2]], np.int32)), Topology(1, 2, 2), "hash")
    assert recorded_steps(window, made) == 12 / (10 + 10)
    assert evened_steps(window, made) == 12 / (8 + 8)
    assert (recorded_steps(replace(window, steps=None), made), evened_steps(replace(window, steps=None), made)) == (
        None,
        None,
    )


def test_what_loads_do_not_tell_is_not_known() -> None:
    """Where `cover` sends a token depends on all of its experts; too many replicas are not for `exact`."""
    steps = np.ones((2, 1, 2), np.int64)
    window = RoutingStatistics(steps.sum(axis=0), steps=steps)
    apart = plan_of(Placement(np.array([[0, 1, 0, 1]], np.int32)), Topology(2, 1, 2), "cover")
    assert recorded_steps(window, apart) is None
    assert evened_steps(window, apart) == 1.0
    crowded = plan_of(Placement(np.array([[0, 1] * 17], np.int32)), Topology(1, 17, 2), "hash")
    assert evened_steps(window, crowded) is None
