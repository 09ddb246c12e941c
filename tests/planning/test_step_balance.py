"""Evenness of single steps: by hand, by shares, and what quotas reach."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import Placement, PluginError, RoutingStatistics, Topology, plan, route_step
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import balancedness, expected_rank_load
from eplb_plugin.planning.step_balance import loads_by_quotas, loads_by_shares, reached_by_quotas, step_balancedness
from eplb_plugin.workloads.routing import ClusteredRouter


def test_by_hand() -> None:
    """Two steps that are even together: each waits for its own busiest rank. Large steps weigh more."""
    assert step_balancedness(np.array([[4.0, 0.0], [0.0, 4.0]])) == 0.5
    assert step_balancedness(np.array([[[6, 6]], [[2, 0]]])) == pytest.approx(7 / 8)
    assert step_balancedness(np.zeros((3, 2))) == 1.0


def test_shares_of_steps_add_up_to_the_windows() -> None:
    """And are less even one by one, if anything."""
    steps = np.random.default_rng(0).integers(0, 50, (6, 2, 8))
    made = plan_of(Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 5]] * 2, np.int32)), Topology(1, 5, 2), "hash")
    loads = loads_by_shares(steps, made)
    np.testing.assert_allclose(loads.sum(axis=0), expected_rank_load(steps.sum(axis=0), made))
    assert step_balancedness(loads) < balancedness(loads.sum(axis=0))


def test_what_exact_cannot_serve_is_not_known() -> None:
    """More than 16 replicas of an expert: no server may stop at a figure for its metrics."""
    crowded = plan_of(Placement(np.array([[0, 1] * 17], np.int32)), Topology(1, 17, 2), "hash")
    assert reached_by_quotas(np.ones((1, 1, 2), np.int64), crowded) is None
    with pytest.raises(PluginError, match="replicas: found 17"):
        loads_by_quotas(np.ones((1, 1, 2), np.int64), crowded)


def test_quotas_are_those_of_route_step() -> None:
    """The busiest rank of every step and layer is the one that tokens make, but for what their wishes break of ties;
    no selection is lost, and replicas make steps more even than fixed shares do.
    """
    topology = Topology(2, 2, 10)
    ids = ClusteredRouter(2, 32, 4, num_topics=4).window(600, 0)
    of_step = np.arange(600) // 100
    known = RoutingStatistics.from_topk(ids, 32, steps=of_step)
    made = plan(known, topology, policy="balanced", dispatch="hash")
    steps = np.stack([RoutingStatistics.from_topk(ids[:, of_step == step], 32).load for step in range(6)])
    loads = loads_by_quotas(steps, made)
    np.testing.assert_array_equal(loads.sum(axis=2), steps.sum(axis=2))
    for step, layer in np.ndindex(6, 2):
        slots = route_step(ids[layer, of_step == step], np.arange(100) % 4, made, layer)
        peak = np.bincount(slots.ravel() // topology.slots_per_rank).max()
        assert abs(peak - loads[step, layer].max()) <= 1
    assert reached_by_quotas(steps, made) == step_balancedness(loads)
    assert step_balancedness(loads) > step_balancedness(loads_by_shares(steps, made)) + 0.03
