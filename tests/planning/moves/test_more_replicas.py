"""Redundant slots that go to the busiest rank's experts, where swaps alone cannot make ranks even."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.layer import plans
from eplb_plugin.planning.score import expected_rank_load, layer_balancedness, moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter

TOPOLOGY = Topology(2, 4, 6)


def suddenly_hot() -> tuple[RoutingStatistics, RoutingStatistics]:
    """A window, and one where a single-copy expert has become as busy as a rank and a half."""
    window = RoutingStatistics.from_topk(ClusteredRouter(1, 40, 4, num_topics=6).window(2048), 40)
    load = window.load.copy()
    coldest = int(np.argmin(load[0]))
    load[0, coldest] = load[0].sum() * 1.5 / TOPOLOGY.num_ranks
    return window, RoutingStatistics(load, window.coactivation, window.sample)


@pytest.mark.parametrize("rule", ["weighted", "cover"])
@pytest.mark.parametrize("bound", [3, 12])
def test_an_expert_that_gets_hot_gets_copies_within_the_bound(rule: str, bound: int, monkeypatch: pytest.MonkeyPatch):
    """Swaps alone leave it on one rank, whatever else is taken from there."""
    window, later = suddenly_hot()
    old, options = plan(window, TOPOLOGY, dispatch=rule), PlanOptions(max_moved_slots=bound)
    made = plan(later, TOPOLOGY, dispatch=rule, previous=old, options=options)
    assert moved_slots(made.placement, old.placement, TOPOLOGY).max() <= bound
    monkeypatch.setattr(plans, "give_copies", lambda rule, made, bounds: made)
    swapped = plan(later, TOPOLOGY, dispatch=rule, previous=old, options=options)
    copies = made.placement.replica_count[0] - old.placement.replica_count[0]
    balance = [layer_balancedness(expected_rank_load(later.load, one))[0] for one in (made, swapped)]
    assert copies[int(np.argmax(later.load[0]))] > 0
    assert balance[0] > balance[1] + 0.1
