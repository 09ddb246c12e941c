"""Where copies are worth most under `cover`: slots are filled, and exchanges never make more tokens cross."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.cover import node_masks
from eplb_plugin.planning.replicas import cover
from eplb_plugin.planning.replicas.cover import exchange_cover, grow_cover
from eplb_plugin.planning.sample import Tokens
from eplb_plugin.planning.traffic.cover import count_cover_arrivals
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from eplb_plugin.planning.traffic.weighted import arrival_cost
from some_copies import CLUSTER, EXPERTS, NODES, SLOTS, check_slots, some_copies, some_tokens
from strategies import QUICK


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


@QUICK
@given(st.integers(0, 1000), st.integers(0, EXPERTS - 1), st.integers(1, 7))
def test_worth_that_is_renewed_is_that_counted_anew(seed: int, expert: int, mask: int):
    """After an expert got other nodes, only its own tokens were looked at again."""
    tokens, masks = some_tokens(seed, 60), node_masks(some_copies(seed))
    worth = cover._open_worth(tokens, masks, CLUSTER.node_of_rank, NODES)
    concerned = np.flatnonzero((tokens.rows == expert).any(axis=1)).astype(np.int32)
    cover._renew(expert, mask, concerned, tokens, masks, CLUSTER, worth)
    assert masks[expert] == mask
    fresh = cover._open_worth(tokens, masks, CLUSTER.node_of_rank, NODES)
    for kept, new in zip(worth, fresh, strict=True):
        np.testing.assert_allclose(kept, new, atol=1e-9)
    arriving = count_cover_arrivals(tokens, masks, CLUSTER.node_of_rank, NODES)
    np.testing.assert_allclose(worth.arriving, arriving, atol=1e-9)
