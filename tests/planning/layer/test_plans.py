"""What all layers of a plan have in common: when one is solved afresh, and that nothing is compiled later."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from eplb_plugin import Placement, PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.planner import Planner
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_from_scratch_is_what_its_rule_says(rule: str):
    """Whichever way it was solved: shares are those of its placement, and no rank exceeds the peak that it tells."""
    window, topology = RoutingStatistics.from_topk(ClusteredRouter(1, 32, 4).window(1024), 32), Topology(2, 4, 5)
    planner = Planner(window, topology, "affinity", rule, 1, PlanOptions(effort="fast"))
    steps, pairs = planner.rule(0)
    layer = planner.by_layer.solve(steps, pairs)
    summed = np.bincount(layer.phy2log, weights=layer.use.shares, minlength=32)
    np.testing.assert_allclose(summed, 1.0)
    rank_load = (steps.load[layer.phy2log] * layer.use.shares).reshape(8, -1).sum(axis=1)
    assert layer.peak == pytest.approx(rank_load.max() / rank_load.mean())
    assert layer.peak < 1.1


@pytest.mark.parametrize(("rule", "policy"), [("hash", "balanced"), ("hash", "affinity"), ("weighted", "affinity")])
def test_new_labels_are_ready_before_a_layer_needs_them(rule: str, policy: str, monkeypatch: pytest.MonkeyPatch):
    """A server's first plan of even, made-up traffic calls, and so compiles, what a later one will need."""
    names = {"balanced": ("balanced.layers", "relabel_layers"), "affinity": ("layer.plans", "relabel")}
    module, called = importlib.import_module(f"eplb_plugin.planning.{names[policy][0]}"), []
    real = getattr(module, names[policy][1])
    monkeypatch.setattr(module, names[policy][1], lambda *arguments: called.append(1) or real(*arguments))
    rows = np.arange(64).reshape(1, 16, 4) % 8
    statistics, topology = RoutingStatistics.from_topk(rows, 8), Topology(2, 2, 2)
    even = Placement(np.arange(8, dtype=np.int32)[None])
    made = plan(statistics, topology, policy=policy, dispatch=rule, previous=even)
    assert called
    assert np.array_equal(made.placement.phy2log, even.phy2log), "and nothing moves"
