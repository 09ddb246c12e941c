"""Weights of copies under `cover`: fitted to counted choices, in parts of the traffic, and said in integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.cover import node_masks
from eplb_plugin.planning.effort import SEARCHES
from eplb_plugin.planning.rules.cover import CoverRule, fit_weights
from eplb_plugin.planning.rules.min_cost_flow import list_by_expert
from eplb_plugin.planning.traffic.cover import Choices
from some_copies import CLUSTER, EXPERTS, NODES, SLOTS, some_copies, some_tokens
from strategies import QUICK


def fitted(parts, choices: Choices, expert, node, bins: int):
    copies = list_by_expert(np.array(expert), np.array(node), parts.shape[1])
    ones = np.ones(len(expert))
    return fit_weights(parts, choices, copies, np.array(node), ones, ones.copy(), bins)


def choices(*rows: tuple[int, int, float]) -> Choices:
    expert, nodes, share = zip(*rows, strict=True)
    return Choices(np.array(expert), np.array(nodes), np.array(share))


def test_a_copy_beside_a_busy_expert_gets_less():
    """Expert 0 may choose freely between node 0, where expert 1 is as busy, and node 1: it goes to node 1."""
    weights, shares = fitted(np.array([[1.0, 1.0]]), choices((0, 0b11, 1.0), (1, 0b01, 1.0)), [0, 0, 1], [0, 1, 0], 2)
    assert shares[0] < 0.02
    assert shares[1] > 0.98
    assert shares[2] == 1.0
    assert (weights >= 1.0).all()
    assert np.array_equal(weights, np.rint(weights))


def test_what_has_no_choice_is_made_up_for():
    """A quarter of expert 0's tokens reach node 0 only; those that may choose make up for it."""
    _, shares = fitted(np.array([[1.0]]), choices((0, 0b01, 0.25), (0, 0b11, 0.75)), [0, 0], [0, 1], 2)
    np.testing.assert_allclose(shares, [0.5, 0.5], atol=0.01)


@QUICK
@given(st.integers(0, 1000))
def test_shares_sum_to_one_and_settling_evens_nodes(seed: int):
    """Of every expert, on nodes that have a copy; nodes get no less even than by equal weights."""
    tokens, copies = some_tokens(seed, 120), some_copies(seed)
    load = np.bincount(tokens.rows.ravel(), minlength=EXPERTS) + 1e-3
    rule = CoverRule(load, load[None], CLUSTER, tokens, np.repeat(np.arange(NODES), SLOTS), 0.02, SEARCHES["thorough"])
    weights = copies.astype(np.float64)
    settled = rule.settle(copies, np.stack([weights, weights / weights.sum(axis=1, keepdims=True)]))
    np.testing.assert_allclose(settled[1].sum(axis=1), 1.0)
    assert (settled[:, copies == 0] == 0.0).all()
    assert (settled[0][copies > 0] >= 1.0).all()
    assert np.array_equal(node_masks(settled[0] > 0), node_masks(copies))
    assert np.array_equal(rule.shares(settled), settled[1])
