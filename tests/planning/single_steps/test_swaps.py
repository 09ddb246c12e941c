"""Swaps inside nodes: no node loses or gains an expert, and peaks fall."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.planning.moves.budget import NO_LIMIT
from eplb_plugin.planning.single_steps.swaps import arrange
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from step_peaks import peaks
from strategies import QUICK, placements, topologies


def arranged(phy2log: np.ndarray, steps: np.ndarray, topology: Topology, tries: int = 128) -> np.ndarray:
    row = phy2log.astype(np.int64)
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)
    before = np.full((topology.num_ranks, steps.shape[1]), topology.num_slots)
    arrange(row, steps.astype(np.float64), cluster, before, NO_LIMIT, 1e-5, tries)
    return row


@QUICK
@given(st.data())
def test_nodes_keep_their_experts_and_peaks_fall(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    row = data.draw(placements(1, experts, topology.num_slots)).phy2log[0]
    steps = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 100, (5, experts))
    made = arranged(row, steps, topology)
    for node in range(topology.num_nodes):
        on = topology.node_of_slot == node
        assert sorted(made[on]) == sorted(row[on])
    assert peaks(made, steps, topology) <= peaks(row, steps, topology)


def test_a_hot_expert_leaves_the_rank_of_another() -> None:
    """Both are on rank 0 alone; rank 1 has two cold ones, of which nothing is shared."""
    topology, steps = Topology(1, 2, 2), np.array([[10, 10, 1, 1]])
    assert {*arranged(np.array([0, 1, 2, 3]), steps, topology)[:2]} & {2, 3}
    assert arranged(np.array([0, 1, 2, 3]), steps, topology, tries=0).tolist() == [0, 1, 2, 3]
