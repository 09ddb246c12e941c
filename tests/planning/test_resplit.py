"""Weights are renewed without moving an expert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan, resplit
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES
from strategies import QUICK, Case, cases

ROUTER = ClusteredRouter(num_layers=2, num_experts=32, top_k=4)
TOPOLOGY = Topology(num_nodes=2, ranks_per_node=4, slots_per_rank=5)


@QUICK
@given(cases(), st.sampled_from(RULES))
def test_the_placement_stays_and_shares_sum_to_one(case: Case, rule: str):
    made = plan(case.statistics, case.topology, policy="balanced", dispatch=rule)
    again = resplit(made, case.statistics)
    assert np.array_equal(again.placement.phy2log, made.placement.phy2log)
    assert again.dispatch == rule
    slots = again.placement.log2phy
    shares = np.where(slots >= 0, np.take_along_axis(again.replica_weights[:, None], np.maximum(slots, 0), 2), 0.0)
    np.testing.assert_allclose(shares.sum(2), 1.0)


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_weights_follow_the_load(rule: str):
    """After traffic has drifted, new weights make the same placement more even, also when tokens are routed."""
    old = RoutingStatistics.from_topk(ROUTER.window(4096, seed=1), 32)
    tokens = ROUTER.drifted(0.8).window(4096, seed=2)
    new = RoutingStatistics.from_topk(tokens, 32)
    made = plan(old, TOPOLOGY, dispatch=rule)
    again = resplit(made, new)
    expected = [balancedness(expected_rank_load(new.load, one)) for one in (made, again)]
    assert expected[1] > expected[0] + 0.01
    sources = np.arange(4096) % TOPOLOGY.num_ranks
    judged = [judge(tokens, sources, one).balancedness for one in (made, again)]
    assert judged[1] > judged[0] + 0.01


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_loads_alone_are_enough(rule: str):
    """What tokens need was learnt with the plan: the load that routing brings about is the one that was promised."""
    tokens = ROUTER.window(8192, seed=1)
    made = plan(RoutingStatistics.from_topk(tokens, 32), TOPOLOGY, dispatch=rule)
    newer = ROUTER.drifted(0.5).window(8192, seed=2)
    statistics = RoutingStatistics.from_topk(newer, 32)
    by_load = resplit(made, RoutingStatistics(statistics.load))
    assert by_load.digest == resplit(made, statistics).digest
    assert by_load.resolved_layers == 0
    found = judge(newer, np.arange(8192) % TOPOLOGY.num_ranks, by_load).balancedness
    # cover keeps less: 0.015 … 0.056 are lost over 16 pairs of windows
    lost = 0.03 if rule == "weighted" else 0.06
    assert found > balancedness(expected_rank_load(statistics.load, by_load)) - lost
    kept = resplit(made, RoutingStatistics.from_topk(tokens, 32))
    copies = [judge(tokens, np.arange(8192) % 8, one).cross_node_copies for one in (made, kept)]
    assert copies[1] < 1.02 * copies[0]


@pytest.mark.parametrize("rule", ["weighted", "cover"])
def test_a_placement_without_weights_gets_some(rule: str):
    """A plan made of a placement file has shares only; they are solved as if it was new."""
    statistics = RoutingStatistics.from_topk(ROUTER.window(4096, seed=1), 32)
    made = plan_of(plan(statistics, TOPOLOGY, policy="deepseek", dispatch="hash").placement, TOPOLOGY, rule)
    again = resplit(made, statistics)
    before, after = (balancedness(expected_rank_load(statistics.load, one)) for one in (made, again))
    assert after >= before
    assert (again.source_weights is None) == (rule == "cover")
    assert (again.cover_weights is None) == (rule == "weighted")


def test_statistics_of_another_model_are_refused():
    made = plan(RoutingStatistics.from_topk(ROUTER.window(64, seed=1), 32), TOPOLOGY)
    with pytest.raises(PluginError, match=r"previous placement: found layers, experts, slots \(2, 32, 40\)"):
        resplit(made, RoutingStatistics(np.ones((2, 30))))
