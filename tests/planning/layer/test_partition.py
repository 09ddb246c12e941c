"""Experts to nodes: sizes, load bound, gain tables, brute force on tiny cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import RoutingStatistics, Topology
from eplb_plugin.planning.layer.partition import ANYWHERE, Limits, Needs, grow_groups, grow_nodes, refine_nodes
from eplb_plugin.planning.sample import layer_tokens
from strategies import QUICK, token_rows


def visits_of(rows, node_of) -> int:
    return sum(len({int(node_of[e]) for e in row if e >= 0}) for row in rows)


def home_nodes(load, pairs, rows, nodes: int, tolerance: float):
    """[E] nodes, grown and refined, while nothing is replicated and no visit is free."""
    node_of = grow_nodes(load, pairs, nodes, tolerance)
    pins, limits = np.zeros((len(rows), nodes), np.int16), Limits(tolerance, ANYWHERE, np.zeros(nodes))
    needs = Needs(rows, pins, np.zeros(nodes, np.int64))
    refine_nodes(load, node_of, np.ones(len(load), np.bool_), needs, limits, 12)
    return node_of


@QUICK
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 1000))
def test_nodes_get_equally_many_experts(experts: int, nodes: int, seed: int):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 5, (experts, experts)).astype(float)
    node_of = grow_nodes(rng.integers(0, 9, experts).astype(float), pairs + pairs.T, nodes, 0.02)
    assert np.bincount(node_of, minlength=nodes).max() <= -(-experts // nodes)
    assert node_of.min() >= 0


@pytest.mark.parametrize(("groups", "nodes"), [(8, 4), (8, 8), (4, 8), (6, 4), (3, 2)])
def test_groups_stay_together(groups: int, nodes: int):
    experts = 24
    node_of = grow_groups(np.ones(experts), np.zeros((experts, experts)), nodes, groups, 0.02)
    assert np.bincount(node_of, minlength=nodes).max() <= -(-experts // nodes)
    if groups % nodes == 0:
        assert all(len(set(group)) == 1 for group in node_of.reshape(groups, -1).tolist())


@QUICK
@given(token_rows(1, 6), st.booleans())
def test_three_plus_three_equals_brute_force(rows, evenly: bool):
    """With two nodes of three experts one swap leads anywhere: the result must be the optimum."""
    statistics = RoutingStatistics.from_topk(rows, 6)
    tokens, pairs = layer_tokens(statistics, 0, Topology(2, 1, 3), "hash")
    load = np.ones(6) if evenly else statistics.load[0].astype(float)
    node_of = home_nodes(load, pairs, tokens.rows, 2, 10.0)
    splits = [np.isin(np.arange(6), half).astype(int) for half in combinations(range(6), 3)]
    assert visits_of(rows[0], node_of) == min(visits_of(rows[0], split) for split in splits)


@QUICK
@given(st.integers(0, 1000))
def test_load_bound_holds_unless_the_gain_is_larger(seed: int):
    rng = np.random.default_rng(seed)
    load = rng.integers(90, 110, 24).astype(float)
    rows = rng.random((200, 24)).argsort(axis=1)[:, :3].astype(np.int16)  # top-k names no expert twice
    node_of = home_nodes(load, np.zeros((24, 24)), rows, 3, 0.02)
    per_node = np.bincount(node_of, load, 3)
    assert per_node.max() <= per_node.mean() * 1.025
