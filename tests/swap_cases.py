"""A made-up layer whose slots may be swapped: for the tests of every search for swaps."""

from __future__ import annotations

import numpy as np

from eplb_plugin.planning.moves.ranks import count_held
from eplb_plugin.planning.moves.swap_state import SwapBounds, SwapState, open_swaps
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from eplb_plugin.planning.traffic.node_visits import open_visits

NODES, RANKS, SLOTS, EXPERTS, TOKENS = 2, 4, 5, 18, 120
CLUSTER = Cluster(np.repeat(np.arange(NODES, dtype=np.int32), RANKS // NODES), NODES, SLOTS, False)
NODE_OF_SLOT = np.repeat(CLUSTER.node_of_rank, SLOTS)


def opened(seed: int, phases: int = 1, budget: int = 1000, ingress: float = 10.0) -> SwapState:
    """Random loads and tokens; two experts have two replicas, on different ranks."""
    rng = np.random.default_rng(seed)
    phy2log = rng.permutation(np.arange(RANKS * SLOTS) % EXPERTS).astype(np.int32)
    while any(len(set(row)) < SLOTS for row in phy2log.reshape(RANKS, SLOTS)):
        phy2log = rng.permutation(phy2log)
    movable = np.bincount(phy2log, minlength=EXPERTS) == 1
    rows = np.argsort(rng.random((TOKENS, EXPERTS)), axis=1)[:, :4].astype(np.int16)
    rows[~movable[rows]] = -1
    home = np.zeros(EXPERTS, np.int32)
    home[phy2log] = NODE_OF_SLOT
    visits = open_visits(rows, np.zeros((TOKENS, NODES), np.int16), home, np.zeros(NODES, np.int64))
    slot_load = np.ascontiguousarray(rng.exponential(size=(phases, EXPERTS))[:, phy2log])
    bounds = SwapBounds(count_held(phy2log, CLUSTER, EXPERTS), budget, ingress)
    return open_swaps(phy2log, slot_load, CLUSTER, movable, visits, bounds)


def check(state: SwapState, old: SwapState) -> None:
    """What must hold after any swaps: everything agrees with the slots, nothing is lost, no rank holds an expert twice,
    replicated experts stay on their nodes, and the budget is kept.
    """
    phy2log = state.phy2log
    assert sorted(phy2log) == sorted(old.phy2log)
    assert all(len(set(row)) == SLOTS for row in phy2log.reshape(RANKS, SLOTS))
    load_of = dict(zip(old.phy2log.tolist(), old.slot_load.T.tolist(), strict=True))
    assert state.slot_load.T.tolist() == [load_of[expert] for expert in phy2log.tolist()]
    held = count_held(phy2log, CLUSTER, EXPERTS)
    assert np.array_equal(state.held, held)
    assert state.moved[0] == np.maximum(held - state.before, 0).sum() <= state.budget
    by_rank = state.slot_load.reshape(len(state.slot_load), RANKS, SLOTS).sum(axis=2)
    np.testing.assert_allclose(state.rank_load, by_rank, rtol=1e-9)
    for expert in np.flatnonzero(~state.movable):
        assert sorted(NODE_OF_SLOT[phy2log == expert]) == sorted(NODE_OF_SLOT[old.phy2log == expert])
    home = np.zeros(EXPERTS, np.int32)
    home[phy2log] = NODE_OF_SLOT
    assert np.array_equal(home[state.movable], state.visits.node_of[state.movable])
    assert state.visits.visited.tolist() == visited(state).tolist()


def visited(state: SwapState) -> np.ndarray:
    """[nodes] tokens that visit a node because of its experts with one replica, counted one by one."""
    home = np.zeros(EXPERTS, np.int32)
    home[state.phy2log] = NODE_OF_SLOT
    visits = np.zeros((len(state.visits.rows), NODES), bool)
    for token, row in enumerate(state.visits.rows):
        visits[token, home[row[row >= 0]]] = True
    return visits.sum(axis=0)
