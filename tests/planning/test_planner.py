"""Plans whose copies have weights: what they promise, and that routing keeps it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan, route
from eplb_plugin.dispatch.tables import TABLE_WIDTH, weighted_tables
from eplb_plugin.plan_types import WEIGHED
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import SHAPES
from strategies import QUICK, Case, cases

policies = st.sampled_from(["deepseek", "balanced", "affinity"])


@QUICK
@given(cases(), policies, st.booleans())
def test_source_weights_are_what_tables_realise(case: Case, policy: str, warm: bool):
    previous = case.previous if warm else None
    made = plan(case.statistics, case.topology, policy=policy, dispatch="weighted", previous=previous)
    np.testing.assert_allclose(made.source_weights.mean(axis=0), made.replica_weights)
    tables, slots, node_of_rank = weighted_tables(made), case.topology.num_slots, case.topology.node_of_rank
    for node, layer in np.ndindex(case.topology.num_nodes, made.placement.num_layers):
        rows = tables[node_of_rank == node, layer]
        found = np.bincount(rows.ravel(), minlength=slots) / (len(rows) * TABLE_WIDTH)
        np.testing.assert_allclose(found, made.source_weights[node, layer])


@QUICK
@given(cases(), policies, st.booleans())
def test_cover_weights_are_small_positive_integers(case: Case, policy: str, warm: bool):
    previous = case.previous if warm else None
    made = plan(case.statistics, case.topology, policy=policy, dispatch="cover", previous=previous)
    assert made.source_weights is None
    assert made.cover_weights.shape == made.placement.phy2log.shape
    assert made.cover_weights.min() >= 1
    assert made.cover_weights.max() <= 255


@pytest.mark.parametrize("slots_per_rank", [5, 6, 8])
@pytest.mark.parametrize("rule", WEIGHED)
def test_routing_keeps_what_the_plan_promised(rule: str, slots_per_rank: int):
    """The planning tokens, sent by route(): every rank gets the load that the plan foresaw, with many replicas too."""
    shape = SHAPES[2]
    rows = shape.tokens(layers=2, count=16384)
    statistics = RoutingStatistics.from_topk(rows, shape.experts)
    made = plan(statistics, Topology(4, 8, slots_per_rank), dispatch=rule)
    foreseen = expected_rank_load(statistics.load, made)
    assert balancedness(foreseen) > 0.98
    found = np.zeros_like(foreseen)
    draws = 48  # of sources: in one, chance is about a percent of a rank
    for seed in range(draws):
        source = np.random.default_rng(seed).permutation(np.arange(16384) % 32)
        for layer in range(2):
            slots = route(rows[layer], source, made, layer)
            found[layer] += np.bincount(slots.ravel() // slots_per_rank, minlength=32) / draws
    np.testing.assert_allclose(found, foreseen, rtol=0.02)


@pytest.mark.parametrize(("rule", "most"), [("weighted", 0.6), ("cover", 0.45)])
def test_many_replicas_keep_tokens_at_home(rule: str, most: float):
    """As many redundant slots as experts, held out: far fewer copies than with a few, at vanilla's balance."""
    router = ClusteredRouter(1, 128, 8, num_topics=32, strength=2.5, skew=0.8)
    statistics, later = RoutingStatistics.from_topk(router.window(8192, 0), 128), router.window(8192, 1)
    sources = np.random.default_rng(0).integers(0, 32, 8192)
    topology = Topology(4, 8, 8)
    vanilla = judge(later, sources, plan(statistics, topology, policy="deepseek", dispatch="hash"))
    ours = judge(later, sources, plan(statistics, topology, dispatch=rule))
    assert ours.cross_node_copies < most * vanilla.cross_node_copies
    assert ours.balancedness > vanilla.balancedness - 0.015


@pytest.mark.parametrize(("rule", "fewer"), [("weighted", 0.045), ("cover", 0.10)])
def test_group_limited_routing_beats_hierarchical_vanilla(rule: str, fewer: float):
    """DeepSeek-V3's routing: vanilla keeps whole groups on a node, which is good for copies and bad for balance."""
    router = ClusteredRouter(2, 256, 8, num_topics=48, strength=2.0, skew=0.3, num_groups=8, top_groups=4)
    statistics, later = RoutingStatistics.from_topk(router.window(8192, 0), 256), router.window(8192, 1)
    sources = np.random.default_rng(0).integers(0, 32, 8192)
    topology = Topology(4, 8, 9)
    vanilla = judge(later, sources, plan(statistics, topology, policy="deepseek", dispatch="hash", num_groups=8))
    ours = judge(later, sources, plan(statistics, topology, dispatch=rule, num_groups=8))
    assert ours.cross_node_copies < (1.0 - fewer) * vanilla.cross_node_copies
    assert ours.balancedness > vanilla.balancedness + 0.01


@pytest.mark.parametrize("rule", WEIGHED)
def test_held_out_tokens_cross_less_at_equal_balance(rule: str):
    router = ClusteredRouter(2, 64, 6, num_topics=8, strength=4.0, skew=0.5)
    topology = Topology(4, 4, 5)
    statistics, later = RoutingStatistics.from_topk(router.window(8192, 0), 64), router.window(8192, 1)
    sources = np.random.default_rng(0).integers(0, 16, 8192)
    vanilla = judge(later, sources, plan(statistics, topology, policy="deepseek", dispatch="hash"))
    ours = judge(later, sources, plan(statistics, topology, dispatch=rule))
    assert ours.cross_node_copies < 0.8 * vanilla.cross_node_copies
    assert ours.balancedness > vanilla.balancedness - 0.015


@pytest.mark.parametrize("rule", WEIGHED)
def test_weights_alone_help_a_placement_that_stays(rule: str):
    shape = SHAPES[2]
    statistics = shape.statistics(count=4096)
    even, weighed = (plan(statistics, shape.topology, policy="deepseek", dispatch=name) for name in ("hash", rule))
    assert np.array_equal(even.placement.phy2log, weighed.placement.phy2log)
    sources, rows = np.arange(4096) % 32, shape.tokens(count=4096)
    assert judge(rows, sources, weighed).cross_node_copies < judge(rows, sources, even).cross_node_copies


@pytest.mark.parametrize("rule", WEIGHED)
@pytest.mark.parametrize("topology", [Topology(18, 2, 4), Topology(8, 2, 12), Topology(1, 8, 9)], ids=str)
def test_other_clusters(topology: Topology, rule: str):
    statistics = RoutingStatistics.from_topk(ClusteredRouter(1, 64, 6).window(1024, 0), 64)
    made = plan(statistics, topology, dispatch=rule)
    assert balancedness(expected_rank_load(statistics.load, made)) > 0.9


@pytest.mark.parametrize("rule", WEIGHED)
def test_too_many_nodes_are_refused_in_one_line(rule: str):
    statistics = RoutingStatistics.from_topk(np.zeros((1, 4, 1), int), 8)
    with pytest.raises(PluginError, match="num_nodes") as caught:
        plan(statistics, Topology(63, 1, 1), dispatch=rule)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)
