"""Exchanges of redundant copies: what they are worth, and that they never make a placement worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.cover import node_masks
from eplb_plugin.planning.cover_copies import exchange_cover, grow_cover
from eplb_plugin.planning.cover_sets import count_cover_arrivals
from eplb_plugin.planning.crossings import Cluster
from eplb_plugin.planning.exchange import best_exchange
from eplb_plugin.planning.search import SEARCHES
from eplb_plugin.planning.sources import arrival_cost
from eplb_plugin.planning.tokens import Tokens
from eplb_plugin.planning.weighted import WeightedRule, lost_copies
from strategies import QUICK

NODES, EXPERTS, SLOTS = 3, 12, 8
CLUSTER = Cluster(np.repeat(np.arange(NODES, dtype=np.int32), 2), NODES, SLOTS // 2, False)


def some_tokens(seed: int, count: int = 400) -> Tokens:
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 4, count)
    wanted = rng.random((count, EXPERTS)) + (np.arange(EXPERTS) % 4 == topic[:, None]) * 0.5
    rows = np.argsort(-wanted, axis=1)[:, :3].astype(np.int16)
    return Tokens(rows, rng.integers(0, 2 * NODES, count).astype(np.int32), rng.integers(0, 1 << 30, count))


def some_copies(seed: int):
    """[E, nodes] every expert once, and the spare slots anyhow."""
    rng = np.random.default_rng([seed, 1])
    copies = np.zeros((EXPERTS, NODES), np.int32)
    copies[np.arange(EXPERTS), rng.permutation(EXPERTS) % NODES] = 1
    for node in range(NODES):
        spare = rng.permutation(np.flatnonzero(copies[:, node] == 0))[: SLOTS - copies[:, node].sum()]
        copies[spare, node] = 1
    return copies


def check_slots(copies) -> None:
    assert copies.sum(axis=0).tolist() == [SLOTS] * NODES
    assert copies.sum(axis=1).min() >= 1
    assert copies.min() >= 0


@QUICK
@given(st.integers(0, 1000))
def test_cover_exchanges_only_for_fewer_crossings(seed: int):
    tokens, copies = some_tokens(seed), some_copies(seed)
    load, masks = np.bincount(tokens.rows.ravel(), minlength=EXPERTS) + 1e-3, node_masks(copies)
    before = arrival_cost(count_cover_arrivals(tokens, masks, CLUSTER.node_of_rank, NODES), 0.02)
    exchange_cover(load, copies, tokens, masks, CLUSTER, 0.02)
    check_slots(copies)
    assert np.array_equal(masks, node_masks(copies))
    assert arrival_cost(count_cover_arrivals(tokens, masks, CLUSTER.node_of_rank, NODES), 0.02) <= before


def test_cover_exchanges_bring_a_misplaced_copy_where_it_is_needed():
    """Both experts are always selected together: a copy beside each is worth a crossing, one of an idle expert none."""
    rows = np.tile(np.array([[0, 1]], np.int16), (90, 1))
    tokens = Tokens(rows, np.arange(90, dtype=np.int32) % 3, np.arange(90))
    cluster = Cluster(np.arange(3, dtype=np.int32), 3, 2, False)
    copies = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.int32)
    exchange_cover(np.array([90.0, 90.0, 90.0, 1.0]) / 10.0, copies, tokens, node_masks(copies), cluster, 1.0)
    assert copies[0].sum() + copies[1].sum() > 2


@QUICK
@given(st.integers(0, 1000))
def test_weighted_exchanges_only_for_fewer_crossings(seed: int):
    tokens = some_tokens(seed)
    load = np.bincount(tokens.rows.ravel(), minlength=EXPERTS) + 1e-3
    node_of_slot = np.repeat(np.arange(NODES), SLOTS)
    rule = WeightedRule(load, load[None], CLUSTER, tokens, node_of_slot, 0.02, SEARCHES["thorough"])
    copies = some_copies(seed)
    use = rule.settle(copies, np.repeat((copies / copies.sum(axis=1, keepdims=True))[None], NODES, axis=0))
    before = arrival_cost(rule.arrivals(use), 0.02)
    after = rule._exchanged(copies, use, load.sum() / len(CLUSTER.node_of_rank))
    check_slots(copies)
    assert arrival_cost(rule.arrivals(after), 0.02) <= before
    assert (after[:, copies == 0] == 0.0).all()


@QUICK
@given(st.integers(0, 1000))
def test_growing_fills_every_slot(seed: int):
    tokens = some_tokens(seed)
    load = np.bincount(tokens.rows.ravel(), minlength=EXPERTS) + 1e-3
    copies = np.zeros((EXPERTS, NODES), np.int32)
    copies[np.arange(EXPERTS), np.arange(EXPERTS) % NODES] = 1
    masks, free = node_masks(copies), np.full(NODES, SLOTS - EXPERTS // NODES)
    grow_cover(load, copies, free, tokens, masks, CLUSTER, 2)
    check_slots(copies)
    assert free.sum() == 0
    assert np.array_equal(masks, node_masks(copies))


def test_a_copy_that_its_rank_needs_does_not_leave():
    saved, lost = np.array([[0.0], [5.0]]), np.zeros((2, 1))
    copies = np.array([[2], [0]], np.int32)
    barred = np.zeros((2, 1), np.bool_)
    assert best_exchange(saved, lost, np.array([1.0, 1.0]), copies, barred, 2.0) == (5.0, 0, 1, 0)
    assert best_exchange(saved, lost, np.array([2.0, 1.0]), copies, barred, 2.0)[0] == 0.0
    barred[1] = True
    assert best_exchange(saved, lost, np.array([1.0, 1.0]), copies, barred, 2.0)[0] == 0.0


def test_a_lost_copy_costs_what_the_next_best_one_does():
    cost = np.array([[[0.0, 0.4, 1.0]], [[0.7, 0.0, 0.9]]])
    use = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    lost = lost_copies(np.array([2.0]), cost, use, np.array([[1, 1, 0]], np.int32))
    assert lost[0].tolist() == pytest.approx([0.4, 0.7, 0.0])
