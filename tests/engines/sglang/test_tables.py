"""The table of `--ep-dispatch-algorithm static`: SGLang's own for any placement, and better informed on nodes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.eplb import expert_location

from eplb_plugin import Placement, Topology
from eplb_plugin.engines.sglang.tables import dispatch_table
from strategies import QUICK, placements


def theirs(placed: Placement, topology: Topology, rank: int, seed: int) -> np.ndarray:
    """SGLang's function, on as many servers as the topology has nodes."""
    parallel = SimpleNamespace(ep_size=topology.num_ranks, nnodes=topology.num_nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_location, "get_parallel", lambda: parallel)
        patch.setattr(expert_location, "_prefer_same_node_experts", lambda: True)
        return expert_location.compute_logical_to_rank_dispatch_physical_map(
            torch.from_numpy(placed.log2phy), topology.num_ranks, topology.num_slots, rank, seed
        ).numpy()


@QUICK
@given(st.data())
def test_equal_to_sglangs(data: st.DataObject) -> None:
    """On every rank, draw for draw, with no copies and many, on one node and several."""
    nodes, per_node = data.draw(st.sampled_from([1, 2, 3, 4])), data.draw(st.integers(1, 4))
    experts = data.draw(st.integers(1, 24))
    slots = -(-experts // (nodes * per_node)) + data.draw(st.integers(0, 4))
    topology = Topology(nodes, per_node, slots)
    placed = data.draw(placements(data.draw(st.integers(1, 3)), experts, topology.num_slots))
    seed = data.draw(st.sampled_from([42, 7]))
    for rank in range(topology.num_ranks):
        ours = dispatch_table(placed.log2phy, topology, rank, topology.num_slots, seed)
        np.testing.assert_array_equal(ours, theirs(placed, topology, rank, seed))


def test_declared_nodes_count() -> None:
    """SGLang knows servers only; a copy on the declared node of a rank goes before one elsewhere."""
    placed = Placement(np.array([[0, 1, 2, 3, 0, 1, 2, 3]]))
    crossed = Topology.from_nodes([0, 1, 0, 1], 2)  # ranks of a node are not contiguous
    for rank in range(4):
        table = dispatch_table(placed.log2phy, crossed, rank, 8)
        rank_of = table[0] // 2
        own_node = crossed.node_of_rank[rank]
        for expert in range(4):
            holders = {slot // 2 for slot in np.flatnonzero(placed.phy2log[0] == expert)}
            near = [one for one in holders if crossed.node_of_rank[one] == own_node]
            assert (rank_of[expert] in near) or not near
            assert rank_of[expert] in holders
