"""Placement and weights together for the rule `weighted`: what a copy is worth, exchanges, and rows that say it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.tables import TABLE_WIDTH
from eplb_plugin.planning.effort import SEARCHES
from eplb_plugin.planning.rules.min_cost_flow import list_by_expert
from eplb_plugin.planning.rules.weighted import WeightedRule, lost_copies, round_to_entries, saved_by_copies
from eplb_plugin.planning.traffic.weighted import arrival_cost
from some_copies import CLUSTER, EXPERTS, NODES, SLOTS, check_slots, some_copies, some_tokens
from strategies import QUICK


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


def test_a_lost_copy_costs_what_the_next_best_one_does():
    cost = np.array([[[0.0, 0.4, 1.0]], [[0.7, 0.0, 0.9]]])
    use = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    lost = lost_copies(np.array([2.0]), cost, use, np.array([[1, 1, 0]], np.int32))
    assert lost[0].tolist() == pytest.approx([0.4, 0.7, 0.0])


def test_a_further_copy_saves_the_sources_that_it_serves_better():
    cost = np.array([[[0.0, 0.4, 1.0]], [[0.7, 0.0, 0.9]]])
    use = np.array([[[0.0, 0.0, 1.0]], [[0.5, 0.0, 0.5]]])
    saved = saved_by_copies(np.array([2.0]), cost, use)
    assert saved[0].tolist() == pytest.approx([1.0 + 0.1, 0.6 + 0.8, 0.0])


@QUICK
@given(st.integers(0, 1000), st.integers(1, 3))
def test_rows_say_shares_in_whole_entries(seed: int, rows: int):
    """A source's row is full and uses no other copies; all together miss a share by an entry at most."""
    rng, sources = np.random.default_rng(seed), 3
    expert = np.sort(np.concatenate([np.arange(4), rng.integers(0, 4, 5)]))
    listed = list_by_expert(expert, np.zeros(9, np.int64), 4)
    shares = rng.random((sources, 9)) * (rng.random((sources, 9)) < 0.7)
    for source in shares:
        total = np.bincount(expert, weights=source, minlength=4)
        source[:] = np.where(total[expert] > 0, source / np.where(total > 0, total, 1)[expert], 0.0)
        for empty in np.flatnonzero(total == 0):
            source[np.flatnonzero(expert == empty)[0]] = 1.0
    rounded, entries = round_to_entries(shares, listed.start, listed.listed, rows), TABLE_WIDTH * rows
    np.testing.assert_allclose(rounded * entries, np.rint(rounded * entries), atol=1e-9)
    for source, given_shares in zip(rounded, shares, strict=True):
        np.testing.assert_allclose(np.bincount(expert, weights=source), 1.0)
        assert (source[given_shares == 0.0] == 0.0).all()
    both = (shares > 0).all(axis=0)
    assert np.abs((rounded - shares).sum(axis=0))[both].max(initial=0.0) <= 1.0 / entries + 1e-9
