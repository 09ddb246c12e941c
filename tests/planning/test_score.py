"""Every figure against a slow reading of its definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PluginError, Topology, route
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge, moved_slots
from strategies import QUICK, Case, cases, placements, token_rows


def make_plan(placement: Placement, topology: Topology, rule: str = "hash") -> Plan:
    return Plan(placement, topology, rule, replica_weights(placement, topology, rule), 0.0)


def test_balancedness_by_hand():
    assert balancedness([[1, 1], [3, 1]]) == pytest.approx((1 + 2 / 3) / 2)
    assert balancedness([[0, 0]]) == 1.0


def test_figures_by_hand():
    """Two nodes of one rank; experts 0 and 1 on the first, 2 and 3 on the second."""
    plan = make_plan(Placement(np.array([[0, 1, 2, 3]])), Topology(2, 1, 2))
    rows = np.array([[[0, 1], [0, 2], [2, 3], [3, -1], [-1, -1]]])
    score = judge(rows, np.zeros(5, int), plan)
    assert score.node_fan_out == pytest.approx((1 + 2 + 1 + 1) / 4)
    assert score.cross_node_copies == pytest.approx(3 / 4)
    assert score.busiest_ingress == pytest.approx(2.0)
    assert score.balancedness == pytest.approx(3.5 / 4)


@QUICK
@given(st.data(), cases(), st.sampled_from(["hash", "nearest"]))
def test_figures_are_their_definitions(data, case: Case, rule: str):
    topology, placement = case.topology, case.previous
    rows = data.draw(token_rows(placement.num_layers, placement.num_experts))
    source = np.arange(rows.shape[1]) * 5 % topology.num_ranks
    plan = make_plan(placement, topology, rule)
    fan_out, copies, ingress, rank_load = [], [], [], []
    for layer, tokens in enumerate(rows):
        slots = route(tokens, source, plan, layer)
        ranks = [[int(topology.rank_of_slot[s]) for s in row if s >= 0] for row in slots]
        visited = [{int(topology.node_of_rank[r]) for r in row} for row in ranks]
        crossed = [v - {int(topology.node_of_rank[s])} for v, s in zip(visited, source, strict=True)]
        count = max(sum(bool(v) for v in visited), 1)
        arriving = Counter(node for v in crossed for node in v)
        fan_out.append(sum(map(len, visited)) / count)
        copies.append(sum(map(len, crossed)) / count)
        mean = sum(arriving.values()) / topology.num_nodes
        ingress.append(max(arriving.values()) / mean if mean else 1.0)
        load = Counter(r for row in ranks for r in row)
        rank_load.append([load[r] for r in range(topology.num_ranks)])
    score = judge(rows, source, plan)
    assert score.node_fan_out == pytest.approx(np.mean(fan_out))
    assert score.cross_node_copies == pytest.approx(np.mean(copies))
    assert score.busiest_ingress == pytest.approx(np.mean(ingress))
    assert score.balancedness == pytest.approx(balancedness(rank_load))


@QUICK
@given(st.data(), cases())
def test_moved_slots_is_the_multiset_difference(data, case: Case):
    old = case.previous
    new = data.draw(placements(old.num_layers, old.num_experts, old.num_slots))
    moved = moved_slots(new, old, case.topology)
    for layer in range(old.num_layers):
        pairs = zip(*(p.phy2log[layer].reshape(case.topology.num_ranks, -1).tolist() for p in (new, old)), strict=True)
        assert moved[layer] == sum((Counter(mine) - Counter(theirs)).total() for mine, theirs in pairs)
    shuffled = np.random.default_rng(0).permuted(old.phy2log.reshape(-1, case.topology.slots_per_rank), axis=1)
    assert moved_slots(Placement(shuffled.reshape(old.phy2log.shape)), old, case.topology).sum() == 0


def test_expected_load_splits_by_weight():
    plan = make_plan(Placement(np.array([[0, 1, 0, 2]])), Topology(2, 1, 2))
    np.testing.assert_allclose(expected_rank_load([[4, 1, 2]], plan), [[3, 4]])


def test_bad_input_is_one_line():
    plan = make_plan(Placement(np.array([[0, 1, 2, 3]])), Topology(2, 1, 2))
    for call in (
        lambda: expected_rank_load(np.ones((1, 3)), plan),
        lambda: judge(np.zeros((2, 3, 1), int), np.zeros(3, int), plan),
        lambda: moved_slots(plan.placement, Placement(np.array([[0, 1]])), plan.topology),
    ):
        with pytest.raises(PluginError, match="fix:") as caught:
            call()
        assert "\n" not in str(caught.value)
