"""Replicas given to other experts: only where quotas reach more, within the budget, and none is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.planning.moves.budget import NO_LIMIT
from eplb_plugin.planning.moves.ranks import count_held, received
from eplb_plugin.planning.single_steps.replicas import arrange_replicas
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from step_peaks import peaks
from strategies import QUICK, placements, topologies

# two nodes of one rank, so that nothing can be swapped inside one; expert 0 has a replica on each
TOPOLOGY, PLACED = Topology(2, 1, 3), np.array([0, 1, 2, 0, 3, 4])
# 1 and 2 are hot together in every other step, and with them their rank, which shares only a cold expert
STEPS = np.array([[2, 20, 20, 4, 4], [2, 4, 4, 20, 20]])


def cluster_of(topology: Topology) -> Cluster:
    return Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)


def arranged(placed: np.ndarray, steps: np.ndarray, topology: Topology, budget: int = NO_LIMIT) -> np.ndarray:
    row = placed.astype(np.int64)
    before = count_held(placed.astype(np.int64), cluster_of(topology), steps.shape[1])
    arrange_replicas(row, steps.astype(np.float64), cluster_of(topology), before, budget, 1e-5)
    return row


def test_replicas_go_to_the_experts_that_let_load_out() -> None:
    """One of each rank's hot ones: then both steps are even."""
    made = arranged(PLACED, STEPS, TOPOLOGY)
    assert np.bincount(made)[0] == 1, "the cold expert gives its replica up"
    assert peaks(PLACED, STEPS, TOPOLOGY) == 80.0
    assert peaks(made, STEPS, TOPOLOGY) == 50.0


def test_not_without_a_budget_and_not_where_steps_are_even() -> None:
    assert arranged(PLACED, STEPS, TOPOLOGY, budget=0).tolist() == PLACED.tolist()
    assert arranged(PLACED, np.array([[2, 10, 10, 10, 10]]), TOPOLOGY).tolist() == PLACED.tolist()


@QUICK
@given(st.data())
def test_no_expert_is_lost_and_peaks_fall(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    row = data.draw(placements(1, experts, topology.num_slots)).phy2log[0]
    steps = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 100, (5, experts))
    budget = data.draw(st.integers(0, 6))
    made = arranged(row, steps, topology, budget)
    assert set(made) == set(range(experts))
    held, before = (count_held(one.astype(np.int64), cluster_of(topology), experts) for one in (made, row))
    assert received(held, before) <= budget
    assert peaks(made, steps, topology) <= peaks(row, steps, topology)
