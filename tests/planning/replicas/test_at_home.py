"""Placements that rules which prefer near copies use evenly: each expert on one node, or on all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Topology
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.replicas.at_home import is_at_home, known_from_loads, solve_at_home
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from strategies import QUICK


def cluster_of(topology: Topology, nearest: bool) -> Cluster:
    return Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, nearest)


@QUICK
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_every_expert_is_on_one_node_or_on_all(
    seed: int, experts: int, nodes: int, per_node: int, spare: int, nearest: bool
):
    """All are placed; on all nodes are only heavy ones, and only under `nearest`, where each serves its own ranks."""
    topology = Topology(nodes, per_node, -(-experts // (nodes * per_node)) + spare)
    load = np.random.default_rng(seed).pareto(1.0, experts) + 0.01
    phy2log = solve_at_home(load, cluster_of(topology, nearest))
    assert set(phy2log.tolist()) == set(range(experts))
    if experts < nodes:
        return
    on = [set(topology.node_of_slot[phy2log == expert].tolist()) for expert in range(experts)]
    assert {len(there) for there in on} <= {1, nodes}
    everywhere = [expert for expert in range(experts) if len(on[expert]) == nodes > 1]
    assert nearest or not everywhere
    assert (
        load[everywhere].min(initial=np.inf)
        >= max((load[expert] for expert in range(experts) if expert not in everywhere), default=0.0)
        or not everywhere
    )
    assert is_at_home(phy2log, cluster_of(topology, False), experts) == (not everywhere)


@pytest.mark.parametrize(
    ("dispatch", "nodes", "row", "known"),
    [
        ("cover", 2, [0, 1, 2, 3], True),
        ("cover", 2, [0, 1, 0, 2], False),
        ("cover", 2, [0, 0, 1, 2], True),  # both copies on one node
        ("cover", 1, [0, 1, 0, 2], True),
        ("weighted", 2, [0, 1, 0, 2], True),
    ],
)
def test_where_loads_alone_tell_what_ranks_get(dispatch: str, nodes: int, row: list[int], known: bool):
    """Not under `cover` with an expert on several nodes, in any layer: tokens decide which node it goes to."""
    rows = np.array([[0, 1, 2, 3] if max(row) == 3 else [0, 0, 1, 2], row], np.int32)
    made = plan_of(Placement(rows), Topology(nodes, 2 // nodes, 2), dispatch)  # type: ignore[arg-type]
    assert known_from_loads(made) is known
