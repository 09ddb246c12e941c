"""A new placement under the old one's labels: the same experts together, and most weights where they are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.planning.moves.relabel import assign, keep_slots, relabel, relabel_layers
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from strategies import QUICK


def cluster_of(topology: Topology) -> Cluster:
    return Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)


@QUICK
@given(st.integers(0, 1000), st.integers(1, 5))
def test_no_exchange_of_two_labels_keeps_more(seed: int, size: int):
    """Every column once; what it keeps is at least half of the best there is, by brute force."""
    overlap = np.random.default_rng(seed).integers(0, 6, (size, size))
    column, rows = assign(overlap), np.arange(size)
    assert sorted(column.tolist()) == rows.tolist()
    kept = overlap[rows, column].sum()
    assert 2 * kept >= max(overlap[rows, list(order)].sum() for order in permutations(range(size)))
    for one in range(size):
        for other in range(one):
            swapped = column.copy()
            swapped[[one, other]] = column[[other, one]]
            assert overlap[rows, swapped].sum() <= kept


def test_greedy_choices_are_put_right():
    """The largest overlap first would leave 3 + 0; 2 + 2 keeps more."""
    assert assign(np.array([[3, 2], [2, 0]])).tolist() == [1, 0]


@QUICK
@given(st.integers(0, 1000), st.booleans())
def test_experts_stay_together(seed: int, apart: bool):
    """Nodes as a whole, ranks within nodes, slots within ranks: nothing else; ranks may be in any order."""
    rng = np.random.default_rng(seed)
    nodes = [0, 1, 0, 1, 2, 2] if apart else [0, 0, 1, 1, 2, 2]
    topology = Topology.from_nodes(nodes, 2)
    new, old = (rng.permutation(np.arange(12) % 8).astype(np.int32) for _ in range(2))
    made = np.empty((1, 12), np.int32)
    relabel_layers(made, np.array([0]), new[None], old[None], cluster_of(topology), 8)

    def together(row) -> list[list[list[int]]]:
        ranks = np.sort(row.reshape(-1, 2), axis=1)
        return sorted(sorted(ranks[topology.node_of_rank == node].tolist()) for node in range(3))

    assert together(made[0]) == together(new)
    for rank in range(6):
        here, before = made[0, 2 * rank :][:2], old[2 * rank :][:2]
        if sorted(here.tolist()) == sorted(before.tolist()):
            assert here.tolist() == before.tolist()


def test_experts_keep_their_slots():
    """Those that were on the rank, one slot a copy; the others fill the slots left, in order."""
    new, old = np.array([5, 1, 1, 7, 2, 3], np.int32), np.array([1, 9, 1, 2, 7, 7], np.int32)
    assert keep_slots(new, old, 3).tolist() == [1, 5, 1, 2, 7, 3]


def test_a_fresh_solve_takes_the_old_labels():
    """The same placement with nodes and ranks renumbered must be recognised: nothing moves."""
    topology = Topology(4, 2, 3)
    rng = np.random.default_rng(0)
    old = np.concatenate([rng.permutation(12), rng.permutation(12)]).astype(np.int32)
    by_rank = old.reshape(4, 2, 3)[rng.permutation(4)][:, ::-1, ::-1]
    relabelled = relabel(by_rank.ravel().copy(), old, cluster_of(topology), 12)
    assert np.array_equal(keep_slots(relabelled, old, topology.slots_per_rank), old)
