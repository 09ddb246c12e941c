"""fast is the same method on fewer tokens and with fewer looks: most of the gain, never an invalid plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.effort import SEARCHES
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES
from strategies import QUICK, Case, cases

FAST = PlanOptions(effort="fast")


def test_no_setting_of_fast_is_larger():
    assert all(fast <= thorough for fast, thorough in zip(SEARCHES["fast"], SEARCHES["thorough"], strict=True))


@QUICK
@given(cases(), st.sampled_from(["balanced", "affinity"]), st.sampled_from(RULES), st.booleans())
def test_any_input_gives_a_valid_plan(case: Case, policy: str, rule: str, warm: bool):
    previous = case.previous if warm else None
    made = plan(case.statistics, case.topology, policy=policy, dispatch=rule, previous=previous, options=FAST)
    assert made.placement.replica_count.min() >= 1
    assert made.placement.num_slots == case.topology.num_slots


@pytest.mark.parametrize("rule", ["hash", "weighted", "cover"])
def test_most_of_the_gain_is_found(rule: str):
    """On the next window: more than half of the copies saved (three quarters at full size), at equal balance."""
    router = ClusteredRouter(1, 64, 6, num_topics=8, strength=4.0, skew=0.5)
    topology = Topology(4, 4, 5)
    statistics, later = RoutingStatistics.from_topk(router.window(8192, 0), 64), router.window(8192, 1)
    sources = np.random.default_rng(0).integers(0, 16, 8192)
    vanilla = judge(later, sources, plan(statistics, topology, policy="deepseek", dispatch="hash"))
    fast, thorough = (
        judge(later, sources, plan(statistics, topology, dispatch=rule, options=options))
        for options in (FAST, PlanOptions())
    )
    saved = vanilla.cross_node_copies - thorough.cross_node_copies
    assert vanilla.cross_node_copies - fast.cross_node_copies > 0.6 * saved
    assert fast.balancedness > thorough.balancedness - 0.02


def test_policies_without_a_search_do_not_change():
    statistics = RoutingStatistics(np.arange(1, 33)[None] * 10.0)
    made = [plan(statistics, Topology(2, 4, 5), policy="balanced", dispatch="hash", options=o) for o in (None, FAST)]
    assert made[0].digest == made[1].digest
    assert balancedness(expected_rank_load(statistics.load, made[1])) > 0.98
