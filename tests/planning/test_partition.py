"""Experts to nodes: sizes, load bound, gain tables, brute force on tiny cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology, route
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.affinity import home_nodes
from eplb_plugin.planning.crossings import Cluster, copy_shares, copy_values, count_crossings
from eplb_plugin.planning.partition import grow_groups, grow_nodes
from eplb_plugin.planning.ranks import count_copies, count_held
from eplb_plugin.planning.replication import place_copies
from eplb_plugin.planning.tokens import Tokens, layer_tokens
from eplb_plugin.planning.visits import open_visits, swap_experts
from eplb_plugin.workloads.routing import ClusteredRouter
from strategies import QUICK, token_rows


def visits_of(rows, node_of) -> int:
    return sum(len({int(node_of[e]) for e in row if e >= 0}) for row in rows)


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
    node_of = home_nodes(load, pairs, tokens.rows, 2, 1, 10.0, 12)
    splits = [np.isin(np.arange(6), half).astype(int) for half in combinations(range(6), 3)]
    assert visits_of(rows[0], node_of) == min(visits_of(rows[0], split) for split in splits)


@QUICK
@given(st.integers(0, 1000))
def test_load_bound_holds_unless_the_gain_is_larger(seed: int):
    rng = np.random.default_rng(seed)
    load = rng.integers(90, 110, 24).astype(float)
    rows = rng.random((200, 24)).argsort(axis=1)[:, :3].astype(np.int16)  # top-k names no expert twice
    node_of = home_nodes(load, np.zeros((24, 24)), rows, 3, 1, 0.02, 12)
    per_node = np.bincount(node_of, load, 3)
    assert per_node.max() <= per_node.mean() * 1.025


@QUICK
@given(token_rows(1, 9), st.integers(2, 4), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8))
def test_gain_tables_stay_exact(rows, nodes: int, swaps):
    """After any swaps the tables equal freshly built ones, and the saved visits are the difference of the totals."""
    rows = rows[0].astype(np.int16)
    node_of = (np.arange(9) % nodes).astype(np.int32)
    own = np.zeros(nodes, np.int64)
    visits = open_visits(rows, np.zeros((len(rows), nodes), np.int16), node_of, own)
    for mine, other in swaps:
        if node_of[mine] == node_of[other]:
            continue
        before = visits_of(rows, node_of)
        assert swap_experts(visits, mine, other) == before - visits_of(rows, node_of)
    fresh = open_visits(rows, np.zeros((len(rows), nodes), np.int16), node_of.copy(), own)
    for kept, new in zip(visits, fresh, strict=True):
        assert np.array_equal(kept, new)


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
    now = count_crossings(copies, cluster, tokens)
    for node in range(nodes):
        if drop and not nearest:
            changed = count_crossings(with_copy(copies, 0, node, -1), cluster, tokens)
            assert lost[0, node] == pytest.approx(changed - now)
        if not drop and not nearest and copies[0, node] == 0:
            changed = count_crossings(with_copy(copies, 0, node, 1), cluster, tokens)
            assert saved[0, node] == pytest.approx(now - changed)
        if not drop and nearest and copies[0, node] == 0:
            changed = count_crossings(with_copy(copies, 0, node, 1), cluster, tokens)
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
        assert crossings == count_crossings(copies, cluster, Tokens(rows.astype(np.int16), source, key))
    else:
        np.testing.assert_allclose(on_node, expected, atol=slack + 2.0 / topology.num_ranks)


@QUICK
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 3), st.integers(0, 3))
def test_copies_fill_every_node_exactly(seed: int, nearest: bool, per_node: int, spare: int):
    rng = np.random.default_rng(seed)
    nodes, experts = 3, 7
    slots_per_rank = -(-experts // (nodes * per_node)) + spare
    cluster = Cluster(np.repeat(np.arange(nodes), per_node).astype(np.int32), nodes, slots_per_rank, nearest)
    tokens = Tokens(
        rng.integers(-1, experts, (30, 2)).astype(np.int16),
        rng.integers(0, nodes * per_node, 30).astype(np.int32),
        rng.integers(0, nodes * per_node, 30),
    )
    home = (np.arange(experts) % nodes).astype(np.int32)
    copies = place_copies(rng.integers(0, 9, experts).astype(float), home, cluster, tokens, 4)
    assert copies.sum(axis=0).tolist() == [per_node * slots_per_rank] * nodes
    assert (copies[np.arange(experts), home] >= 1).all()
    if slots_per_rank <= experts:
        assert copies.max() <= per_node


def test_rows_drawn_from_pairs_have_those_pairs():
    rows = ClusteredRouter(1, 32, 4, num_topics=6).window(8192)
    full = RoutingStatistics.from_topk(rows, 32)
    tokens, pairs = layer_tokens(RoutingStatistics(full.load, full.coactivation), 0, Topology(2, 2, 8), "hash")
    drawn = RoutingStatistics.from_topk(tokens.rows[None], 32)
    assert tokens.rows.shape[1] == 4
    assert np.corrcoef(drawn.load[0], full.load[0])[0, 1] > 0.98
    upper = np.triu_indices(32, 1)
    assert np.corrcoef(drawn.coactivation[0][upper], pairs[upper])[0, 1] > 0.95
