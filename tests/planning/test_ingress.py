"""The busiest node's ingress is bounded, on tokens that the plan was not made from."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PlanOptions, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.planning.layer.partition import Limits, Needs, refine_nodes
from eplb_plugin.planning.score import Score, judge
from eplb_plugin.planning.traffic.fixed_rules import Cluster, count_sources
from eplb_plugin.planning.traffic.node_visits import open_visits
from eplb_plugin.planning.traffic.weighted import INGRESS_PRICE, arrival_cost, arrival_prices
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES

# few topics, clearly apart: their experts share a node, and some nodes are then visited much more than others
UNEVEN = ClusteredRouter(2, 128, 8, num_topics=12, strength=3.5, skew=1.0, purity=0.3)


def held_out(rule: str, options: PlanOptions) -> Score:
    statistics = RoutingStatistics.from_topk(UNEVEN.window(8192, 0), 128)
    made = plan(statistics, Topology(4, 8, 5), dispatch=rule, options=options)
    return judge(UNEVEN.window(8192, 1), np.random.default_rng(0).integers(0, 32, 8192), made)


@pytest.mark.parametrize("rule", RULES)
def test_busiest_node_gets_little_more_than_the_mean(rule: str):
    bounded, free = held_out(rule, PlanOptions()), held_out(rule, PlanOptions(ingress_tolerance=1.0))
    assert bounded.busiest_ingress < 1.06  # held out
    assert bounded.busiest_ingress < free.busiest_ingress
    assert bounded.cross_node_copies < 1.06 * free.cross_node_copies
    assert bounded.balancedness > free.balancedness - 0.04  # two layers: a plan is off by a point or two


def test_a_tolerance_that_is_no_share_is_refused():
    with pytest.raises(PluginError, match="ingress_tolerance") as caught:
        PlanOptions(ingress_tolerance=-0.1)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)


def test_partition_evens_out_what_arrives():
    """By its own measure: visits, and what nodes get beyond the bound."""
    costs = np.zeros(2)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = np.argsort(rng.random((300, 24)) * rng.random(24), axis=1)[:, :4].astype(np.int16)
        source = rng.integers(0, 3, 300).astype(np.int32)
        own = count_sources(source, Cluster(np.arange(3, dtype=np.int32), 3, 8, False))
        node_of, load = (
            (np.arange(24) % 3).astype(np.int32),
            np.bincount(rows.ravel(), minlength=24).astype(float) + 1.0,
        )
        for turn in range(2):
            pins = np.zeros((300, 3), np.int16)
            pins[np.arange(300), source] = 1
            arriving = open_visits(rows, pins.copy(), node_of.copy(), own).visited - own
            costs[turn] += arrival_cost(arriving, 0.02)
            limits = Limits(1.0, 0.02, np.zeros(3))
            refine_nodes(load, node_of, np.ones(24, np.bool_), Needs(rows, pins, own), limits, 12)
    assert costs[1] < costs[0]


def test_what_exceeds_the_bound_has_a_price():
    assert arrival_cost(np.array([100, 100]), 0.02) == 200.0
    assert arrival_cost(np.array([110, 90]), 0.02) == pytest.approx(200.0 + 8.0 * INGRESS_PRICE)
    cheap, dear = arrival_prices(np.array([50.0, 150.0]))
    assert cheap < 1.0 < dear
    assert arrival_prices(np.zeros(2)).tolist() == [1.0, 1.0]
