from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from eplb_plugin import PluginError, Topology
from strategies import QUICK, topologies


def test_counts_and_maps():
    topology = Topology(2, 2, 3)
    assert (topology.num_ranks, topology.num_slots) == (4, 12)
    assert topology.node_of_rank.tolist() == [0, 0, 1, 1]
    assert topology.rank_of_slot.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert topology.node_of_slot.tolist() == [0] * 6 + [1] * 6


def test_from_nodes_takes_any_numbering_and_order():
    topology = Topology.from_nodes([7, 3, 7, 3], 2)
    assert (topology.num_nodes, topology.ranks_per_node) == (2, 2)
    assert topology.node_of_rank.tolist() == [1, 0, 1, 0]
    assert Topology.from_nodes([0, 0, 1, 1], 3) == Topology(2, 2, 3)


@QUICK
@given(topologies(5))
def test_maps_agree(topology: Topology):
    assert len(topology.node_of_rank) == topology.num_ranks
    assert np.bincount(topology.node_of_rank).tolist() == [topology.ranks_per_node] * topology.num_nodes
    assert np.array_equal(topology.node_of_rank[topology.rank_of_slot], topology.node_of_slot)
    assert len(topology.node_of_slot) == topology.num_slots >= 5


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("name", ["num_nodes", "ranks_per_node", "slots_per_rank"])
def test_counts_must_be_positive_integers(name, bad):
    with pytest.raises(PluginError, match=name):
        Topology(**{"num_nodes": 2, "ranks_per_node": 2, "slots_per_rank": 2} | {name: bad})


def test_numpy_integers_are_integers():
    assert Topology(np.int64(2), np.int32(2), np.int16(3)) == Topology(2, 2, 3)


@pytest.mark.parametrize("nodes", [[0, 0, 1], []])
def test_nodes_must_be_equally_large(nodes):
    with pytest.raises(PluginError, match="node_of_rank"):
        Topology.from_nodes(nodes, 2)
