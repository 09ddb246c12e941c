"""Figures averaged over random source ranks."""

from __future__ import annotations

import numpy as np

from eplb_plugin import Topology
from eplb_plugin.observe.judging import average, judge_draws
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
