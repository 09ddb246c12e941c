"""The rules without weights of their own, as steps of the joint method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.effort import SEARCHES
from eplb_plugin.planning.rules.fixed import FixedRule, place_copies
from eplb_plugin.planning.sample import Tokens, no_tokens
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from strategies import QUICK, placements, topologies


@QUICK
@given(st.data(), st.booleans())
def test_shares_are_those_of_dispatch(data: st.DataObject, nearest: bool):
    """To the last bit: digests of plans depend on them."""
    experts = data.draw(st.integers(1, 10))
    topology = data.draw(topologies(experts))
    placement: Placement = data.draw(placements(1, experts, topology.num_slots))
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, nearest)
    load = np.ones(experts)
    rule = FixedRule(load, load[None], cluster, no_tokens(), topology.node_of_slot, 0.02, SEARCHES["fast"])
    phy2log = placement.phy2log[0]
    exact = replica_weights(placement, topology, "nearest" if nearest else "hash")[0]
    np.testing.assert_array_equal(rule.use_of(phy2log).shares, exact)
    copies = rule.to_nodes(phy2log, rule.use_of(phy2log))
    assert copies.sum(axis=1).tolist() == np.bincount(phy2log, minlength=experts).tolist()


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
    home, copies = np.arange(experts) % nodes, np.zeros((experts, nodes), np.int32)
    copies[np.arange(experts), home] = 1
    free = per_node * slots_per_rank - copies.sum(axis=0)
    place_copies(rng.integers(0, 9, experts).astype(float), copies, free, cluster, tokens, 4)
    assert not free.any()
    assert copies.sum(axis=0).tolist() == [per_node * slots_per_rank] * nodes
    assert (copies[np.arange(experts), home] >= 1).all()
    if slots_per_rank <= experts:
        assert copies.max() <= per_node


@pytest.mark.parametrize("nearest", [False, True])
def test_a_visit_to_the_own_node_is_free_where_copies_are_chosen_by_source(nearest: bool):
    cluster = Cluster(np.array([0, 1], np.int32), 2, 2, nearest)
    tokens = Tokens(np.array([[0, 1]], np.int16), np.array([1], np.int32), np.array([1]))
    load = np.ones(4)
    rule = FixedRule(load, load[None], cluster, tokens, np.array([0, 0, 1, 1]), 0.02, SEARCHES["fast"])
    assert rule.own_is_free == nearest
    _, pins = rule.pins(np.eye(4, 2), np.ones(4, np.bool_))
    assert pins.tolist() == [[0, int(nearest)]]
