"""Which nodes tokens visit, foreseen from copies per node: against routing, and against counting anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, Topology, route
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.moves.ranks import count_copies, count_held
from eplb_plugin.planning.sample import Tokens
from eplb_plugin.planning.traffic.fixed_rules import (
    Cluster,
    copy_shares,
    copy_values,
    count_fixed_arrivals,
    count_sources,
    fixed_pins,
)
from strategies import QUICK


def with_copy(copies, expert: int, node: int, change: int):
    changed = copies.copy()
    changed[expert, node] += change
    return changed


@QUICK
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_first_copies_are_worth_what_they_save(seed: int, nearest: bool, drop: bool):
    """Averaged over hashes or sources, the value of a copy more (or less) is what routing then really sends less."""
    rng = np.random.default_rng(seed)
    nodes, experts = 3, 6
    cluster = Cluster(np.arange(nodes, dtype=np.int32), nodes, 4, nearest)
    copies = np.zeros((experts, nodes), np.int32)
    copies[np.arange(experts), rng.integers(0, nodes, experts)] = 1
    if drop:
        copies[0] = 1
    base = np.argsort(rng.random((12, experts)), axis=1)[:, :2].astype(np.int16)
    turns = 54  # every row from every source, equally often with every residue of a hash
    rows = np.repeat(base, turns, axis=0)
    source = np.tile(np.repeat(np.arange(nodes, dtype=np.int32), turns // nodes), len(base))
    key = source.astype(np.int64) if nearest else np.tile(np.arange(turns), len(base)).astype(np.int64)
    tokens = Tokens(rows, source, key)
    saved, lost = copy_values(copies, cluster, tokens)
    now = count_fixed_arrivals(copies, cluster, tokens).sum()
    for node in range(nodes):
        if drop and not nearest:
            changed = count_fixed_arrivals(with_copy(copies, 0, node, -1), cluster, tokens).sum()
            assert lost[0, node] == pytest.approx(changed - now)
        if not drop and not nearest and copies[0, node] == 0:
            changed = count_fixed_arrivals(with_copy(copies, 0, node, 1), cluster, tokens).sum()
            assert saved[0, node] == pytest.approx(now - changed)
        if not drop and nearest and copies[0, node] == 0:
            changed = count_fixed_arrivals(with_copy(copies, 0, node, 1), cluster, tokens).sum()
            own = source == node  # exact for the new node's own tokens; the far ones' turn is an average
            far = np.isin(rows[~own], 0).any(axis=1).sum()
            assert abs(saved[0, node] - (now - changed)) <= far


@QUICK
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 3))
def test_node_level_shares_and_crossings_are_those_of_routing(seed: int, nearest: bool, per_node: int):
    """What the planner foresees from copies per node is what route() does with the slots."""
    rng = np.random.default_rng(seed)
    topology, rule = Topology(3, per_node, 4), "nearest" if nearest else "hash"
    experts = 6
    slots = np.concatenate([np.arange(experts), rng.integers(0, experts, topology.num_slots - experts)])
    placement = Placement(rng.permutation(slots).astype(np.int32)[None])
    cluster = Cluster(topology.node_of_rank, 3, 4, nearest)
    copies = count_copies(count_held(placement.phy2log[0], cluster, experts), cluster)
    exact = replica_weights(placement, topology, rule)
    expected = copy_shares(copies, cluster) * copies
    on_node = np.zeros((experts, 3))
    np.add.at(on_node, (placement.phy2log[0], topology.node_of_slot), exact[0])
    # a node's copies serve its own ranks; only the far ranks' turns can differ where a node has several copies
    slack = 0.0 if per_node == 1 or not nearest else 1.0
    if not np.any((copies > 1) & (copies.sum(1) > copies.max(1))[:, None]):
        np.testing.assert_allclose(on_node, expected, atol=1e-9)
        rows = np.argsort(rng.random((50, experts)), axis=1)[:, :2]
        source = rng.integers(0, topology.num_ranks, 50).astype(np.int32)
        index = np.arange(50)
        key = source.astype(np.int64) if nearest else index * 2654435769 % 2**32
        made = Plan(placement, topology, rule, exact, 0.0)
        nodes = topology.node_of_slot[route(rows, source, made, 0, token_index=index)]
        own = topology.node_of_rank[source]
        crossings = sum(len(set(there) - {here}) for there, here in zip(nodes.tolist(), own.tolist(), strict=True))
        assert crossings == count_fixed_arrivals(copies, cluster, Tokens(rows.astype(np.int16), source, key)).sum()
    else:
        np.testing.assert_allclose(on_node, expected, atol=slack + 2.0 / topology.num_ranks)


def test_sources_are_counted_by_node():
    cluster = Cluster(np.array([0, 1, 0, 1], np.int32), 2, 1, False)
    assert count_sources(np.array([0, 2, 2, 3], np.int32), cluster).tolist() == [3, 1]


@QUICK
@given(st.integers(0, 1000), st.booleans())
def test_pins_and_single_experts_make_up_all_visits(seed: int, nearest: bool):
    """A token visits the nodes that are pinned and those of its experts without a further copy, no others."""
    rng, nodes, experts = np.random.default_rng(seed), 3, 6
    cluster = Cluster(np.arange(nodes, dtype=np.int32), nodes, 4, nearest)
    copies = np.zeros((experts, nodes), np.int32)
    copies[np.arange(experts), rng.integers(0, nodes, experts)] = 1
    copies[:2] += rng.integers(0, 2, (2, nodes)).astype(np.int32)
    rows = np.argsort(rng.random((40, experts)), axis=1)[:, :3].astype(np.int16)
    rows[rng.random(rows.shape) < 0.2] = -1
    source = rng.integers(0, nodes, 40).astype(np.int32)
    tokens = Tokens(rows, source, source.astype(np.int64) if nearest else rng.integers(0, 1 << 20, 40))
    singles, pins = fixed_pins(copies, cluster, tokens)
    single = copies.sum(axis=1) == 1
    assert np.array_equal(singles, np.where((rows >= 0) & single[rows], rows, -1))
    visits = pins > 0
    for token, row in enumerate(singles):
        visits[token, [int(copies[expert].argmax()) for expert in row if expert >= 0]] = True
    visits[np.arange(40), source] = False
    assert visits.sum() == count_fixed_arrivals(copies, cluster, tokens).sum()
