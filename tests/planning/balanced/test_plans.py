"""Plans of `balanced` under every rule: even, kept where they are even enough, and no worse than new shares alone."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology
from eplb_plugin.planning.balanced.plans import plan_evenly
from eplb_plugin.planning.planner import Planner
from eplb_plugin.planning.score import expected_rank_load, layer_balancedness, moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter

TOPOLOGY = Topology(num_nodes=2, ranks_per_node=2, slots_per_rank=10)
ROUTER = ClusteredRouter(num_layers=3, num_experts=32, top_k=4, num_topics=5)
RULES = ("hash", "weighted", "cover")  # `nearest` is solved layer by layer


def window(drift: float, seed: int) -> RoutingStatistics:
    return RoutingStatistics.from_topk(ROUTER.drifted(drift).window(1500, seed), 32)


def planned(statistics: RoutingStatistics, rule: str, previous: Plan | None = None, **options: int) -> Plan:
    planner = Planner(statistics, TOPOLOGY, "balanced", rule, 1, PlanOptions(**options))
    return plan_evenly(planner, previous)


def balance(statistics: RoutingStatistics, made: Plan) -> np.ndarray:
    return layer_balancedness(expected_rank_load(statistics.load.astype(float), made))


@pytest.mark.parametrize("rule", RULES)
def test_it_is_even_and_stays(rule: str) -> None:
    """By the shares that it plans; for the same window again nothing moves."""
    seen = window(0.0, 1)
    made = planned(seen, rule)
    assert (balance(seen, made) > 0.97).all()
    assert moved_slots(planned(seen, rule, made).placement, made.placement, TOPOLOGY).sum() == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bound", [{"max_moved_slots": 3}, {"max_moved_slots_total": 5}])
def test_phases_are_evened_out_within_the_bounds(rule: str, bound: dict[str, int]) -> None:
    before = planned(window(0.0, 1), rule)
    after = planned(window(0.5, 2).merge(window(0.9, 3)), rule, before, **bound)
    moved = moved_slots(after.placement, before.placement, TOPOLOGY)
    assert moved.max() <= bound.get("max_moved_slots", 40)
    assert moved.sum() <= bound.get("max_moved_slots_total", 120)


def test_new_shares_alone_may_do() -> None:
    """Where they make the old placement even enough, no expert moves."""
    before = planned(window(0.0, 1), "weighted")
    later = window(0.02, 2)
    after = planned(later, "weighted", before)
    assert moved_slots(after.placement, before.placement, TOPOLOGY).sum() <= 2
    assert (balance(later, after) > 0.95).all()
