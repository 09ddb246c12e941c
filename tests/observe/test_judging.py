"""Figures averaged over random source ranks."""

from __future__ import annotations

import numpy as np

from eplb_plugin import Topology
from eplb_plugin.observe.judging import average, judge_draws, judge_steps
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
        scores, per_step = judge_steps(rows, made, step_tokens, 2, 3)
        for name in ("balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress"):
            np.testing.assert_allclose(getattr(scores, name), getattr(window, name))
        if step_tokens == 300:
            np.testing.assert_allclose(per_step, window.balancedness)
        else:
            assert (per_step < window.balancedness).all()


def test_tokens_behind_the_last_whole_step_are_left_out() -> None:
    rows = np.argsort(np.random.default_rng(2).random((1, 250, 8)), axis=2)[:, :, :2]
    made = plan_of(linear_placement(1, 8, 8), Topology(2, 2, 2), "hash")
    sources = np.random.default_rng([3, 0]).integers(0, 4, 250)[:200]
    scores, _ = judge_steps(rows, made, 100, 1, 3)
    np.testing.assert_allclose(scores.cross_node_copies, judge_layers(rows[:, :200], sources, made).cross_node_copies)
