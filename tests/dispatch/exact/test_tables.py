"""Tables of `exact`: what a placement offers, at addresses and in shapes that no switch changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PluginError, Topology
from eplb_plugin.dispatch.exact.replicas import replicas_of
from eplb_plugin.dispatch.exact.tables import ExactTables, exact_maps, replicas_in
from eplb_plugin.planning.planner import plan_of
from strategies import QUICK, placements, topologies

CPU = torch.device("cpu")


@QUICK
@given(st.data())
def test_the_tables_hold_what_the_placement_offers(data: st.DataObject):
    """Made full, and filled again for a layer: at the same addresses, and nothing of the old placement is left."""
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    first, second = (data.draw(placements(2, experts, topology.num_slots)) for _ in range(2))
    tables = ExactTables(plan_of(first, topology, "hash"), [0], CPU, 0.0)
    addresses = [part.data_ptr() for part in tables.tensors()]
    tables.put(exact_maps(plan_of(second, topology, "hash"), [1]), [1])
    assert [part.data_ptr() for part in tables.tensors()] == addresses
    for index, placement in ((0, first), (1, second)):
        found, expected = replicas_in(tables.layer(index)), replicas_of(placement.phy2log[index], topology)
        for name in expected._fields:
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert tables.nbytes() >= sum(part.nbytes for part in tables.tensors())


def plan_with(dispatch: str = "hash", ranks: int = 6) -> Plan:
    placement = Placement(np.arange(2 * ranks, dtype=np.int32)[None] % (ranks + 2))
    return plan_of(placement, Topology(2, ranks // 2, 2), dispatch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owners", "source", "held"), [([3], 3, 2), ([3, 2], 1, 3), (range(6), 0, 3), ([0, 1, 2], 0, 1)]
)
def test_ranks_that_route_the_same_tokens_are_one_source(owners: list[int], source: int, held: int):
    tables = ExactTables(plan_with(), owners, CPU, 0.0)
    layer = tables.layer(0)
    assert (layer.source, layer.held, layer.rank) == (source, held, min(owners))
    assert tables.sources == 6 // len(owners)
    assert layer.source_of_rank.tolist() == [rank // len(owners) for rank in range(6)]
    assert layer.work.mine.shape == (tables.payload,)


def test_wishes_follow_the_plan():
    assert [ExactTables(plan_with(rule), [0], CPU, 0.0).layer(0).covers for rule in ("cover", "weighted")] == [
        True,
        False,
    ]


@pytest.mark.parametrize("owners", [[1, 2], [0, 2], [0, 1, 2, 3]])
def test_groups_unlike_each_other_are_refused(owners: list[int]):
    with pytest.raises(PluginError, match="ranks that route the same tokens: found"):
        ExactTables(plan_with(), owners, CPU, 0.0)


def test_what_exact_cannot_handle_is_refused():
    with pytest.raises(PluginError, match="tolerance: found 2"):
        ExactTables(plan_with(), [0], CPU, 2.0)
    many = plan_of(Placement(np.zeros((1, 17), np.int32)), Topology(1, 17, 1), "hash")
    with pytest.raises(PluginError, match="replicas: found 17"):
        exact_maps(many, [0])
