"""Clusters of any shape: valid plans, bounds on moves kept, and never much less even than the engines' own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.score import balancedness, expected_rank_load, moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import POLICIES, RULES, SHAPES
from strategies import QUICK

ODD = ("18 nodes", "40 nodes", "nodes do not divide", "more nodes than groups", "one slot per rank", "one node")
TOLERANCE = PlanOptions().balance_tolerance


def balance(made: Plan, statistics: RoutingStatistics) -> float:
    return balancedness(expected_rank_load(statistics.load, made))


@pytest.mark.parametrize(("policy", "rule"), list(product(("balanced", "affinity"), RULES)))
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.name.startswith(ODD)], ids=str)
def test_odd_shapes_from_an_old_placement(shape, policy: str, rule: str):
    """Every expert keeps a copy, and no bound on moves is exceeded."""
    statistics, later = shape.statistics(1), shape.statistics(1, seed=1)
    first = plan(statistics, shape.topology, policy=policy, dispatch=rule, num_groups=shape.groups)
    for cap in (None, 3):
        made = plan(
            later, shape.topology, policy=policy, dispatch=rule, num_groups=shape.groups, previous=first.placement,
            options=PlanOptions(max_moved_slots=cap),
        )  # fmt: skip
        assert made.placement.replica_count.min() >= 1
        if cap is not None:
            assert moved_slots(made.placement, first.placement, shape.topology).max() <= cap


@QUICK
@given(
    st.sampled_from([(18, 1, 70), (10, 2, 48), (4, 4, 20), (3, 2, 13), (2, 8, 16), (5, 1, 30)]),
    st.integers(0, 3),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1.0),
    st.integers(0, 100),
    st.sampled_from(["hash", "weighted"]),
)
def test_locality_costs_no_more_balance_than_the_tolerance(shape, spare, strength, skew, seed, rule):
    """As even as vanilla on the window itself, but for the tolerance, on any cluster and any routing."""
    nodes, per_node, experts = shape
    topology = Topology(nodes, per_node, -(-experts // (nodes * per_node)) + spare)
    router = ClusteredRouter(1, experts, 4, num_topics=5, strength=strength, skew=skew, model_seed=seed)
    statistics = RoutingStatistics.from_topk(router.window(512), experts)
    vanilla = plan(statistics, topology, policy="deepseek", dispatch="hash")
    made = plan(statistics, topology, policy="affinity", dispatch=rule)
    even = min(balance(vanilla, statistics), 1.0 / (1.0 + TOLERANCE))
    assert balance(made, statistics) >= even - TOLERANCE - 1e-3


def test_plans_made_at_once_are_the_plans_made_in_turn():
    """A server plans in background threads, perhaps for two models: kernels without the GIL must not share anything."""
    works = [
        partial(plan, shape.statistics(1), shape.topology, policy=policy, dispatch=rule)
        for shape in SHAPES[1:3]
        for policy, rule in product(POLICIES[1:], RULES)
    ]
    alone = [work().digest for work in works]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda work: work().digest, works))
    assert together == alone


def test_a_window_planned_twice_keeps_its_placement():
    shape = SHAPES[2]
    statistics = shape.statistics(1, 4096)
    for rule in RULES:
        first = plan(statistics, shape.topology, dispatch=rule)
        again = plan(statistics, shape.topology, dispatch=rule, previous=first.placement)
        assert balance(again, statistics) >= min(balance(first, statistics), 1.0 / (1.0 + TOLERANCE)) - 1e-6
        assert np.mean(again.placement.phy2log != first.placement.phy2log) < 0.1
