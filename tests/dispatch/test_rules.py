"""route() against a slow reference that reads like the rules' description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PluginError, Topology, route
from eplb_plugin.dispatch.rules import nearest_table, replica_weights, running_position
from generators import SHAPES
from strategies import QUICK, placements, topologies


def make_plan(placement: Placement, topology: Topology, rule: str = "hash") -> Plan:
    return Plan(placement, topology, rule, replica_weights(placement, topology, rule), 0.0)


def copies_of(expert: int, phy2log) -> list[int]:
    return [slot for slot, held in enumerate(phy2log) if held == expert]


def hash_slowly(rows, index, phy2log) -> list[list[int]]:
    def pick(expert: int, position: int) -> int:
        copies = copies_of(expert, phy2log)
        return copies[int(position) * 2654435769 % 2**32 % len(copies)]

    return [[pick(e, i) if e >= 0 else -1 for e in row] for row, i in zip(rows, index, strict=True)]


def nearest_slowly(phy2log, topology: Topology, expert: int) -> dict[int, int]:
    """Slot that every source rank uses: own rank, then own node, then anywhere, the least used so far, next node."""
    rank_of, node_of = topology.rank_of_slot, topology.node_of_slot
    copies = copies_of(expert, phy2log)
    choice: dict[int, int] = {}
    for copy in copies:
        choice.setdefault(rank_of[copy], copy)
    for nearby in (True, False):
        for rank in range(topology.num_ranks):
            if rank in choice:
                continue
            near = [c for c in copies if not nearby or node_of[c] == topology.node_of_rank[rank]]
            if near:
                used = list(choice.values())
                choice[rank] = min(near, key=lambda c: (used.count(c), (node_of[c] - expert) % topology.num_nodes, c))
    return choice


@st.composite
def routed(draw: st.DrawFn):
    experts = draw(st.integers(1, 8))
    topology = draw(topologies(experts))
    placement = draw(placements(2, experts, topology.num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = rng.integers(-1, experts, (draw(st.integers(0, 30)), draw(st.integers(1, 4))))
    return placement, topology, rows, rng.integers(0, topology.num_ranks, len(rows))


@QUICK
@given(routed(), st.booleans())
def test_hash_is_the_engines(given_case, explicit: bool):
    placement, topology, rows, source = given_case
    index = np.arange(len(rows)) * 7 + 3 if explicit else running_position(source.astype(np.int32), topology.num_ranks)
    slots = route(rows, source, make_plan(placement, topology), 1, token_index=index if explicit else None)
    assert slots.dtype == np.int32
    assert slots.tolist() == hash_slowly(rows, index, placement.phy2log[1])


@QUICK
@given(routed())
def test_nearest_is_its_description(given_case):
    placement, topology, rows, source = given_case
    slots = route(rows, source, make_plan(placement, topology), 0, "nearest")
    choice = {e: nearest_slowly(placement.phy2log[0], topology, e) for e in range(placement.num_experts)}
    expected = [[choice[e][s] if e >= 0 else -1 for e in row] for row, s in zip(rows, source, strict=True)]
    assert slots.tolist() == expected


@QUICK
@given(routed())
def test_replica_weights_are_what_routing_does(given_case):
    placement, topology, _, _ = given_case
    for rule in ("hash", "nearest"):
        weights = replica_weights(placement, topology, rule)
        total = np.zeros(placement.replica_count.shape)
        for layer, row in enumerate(placement.phy2log):
            np.add.at(total[layer], row, weights[layer])
        np.testing.assert_allclose(total, 1.0)
    for layer in range(placement.num_layers):
        table = nearest_table(placement, topology, layer)
        for expert in range(placement.num_experts):
            for slot in copies_of(expert, placement.phy2log[layer]):
                assert weights[layer, slot] == np.mean(table[:, expert] == slot)


def test_hash_spreads_evenly_over_copies():
    placement = Placement(np.array([[0, 0, 0, 1]], np.int32))
    plan = make_plan(placement, Topology(1, 4, 1))
    slots = route(np.zeros((3000, 1), int), 0, plan, 0)
    share = np.bincount(slots.ravel(), minlength=4) / 3000
    np.testing.assert_allclose(share, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.01)


def test_running_position_counts_per_source_rank():
    assert running_position(np.array([1, 0, 1, 1, 0], np.int32), 2).tolist() == [0, 0, 1, 2, 1]


def test_nearest_serves_evenly_where_nothing_is_near():
    placement = Placement(np.array([[0, 1, 0, 1, 2, 3, 2, 3]], np.int32))  # experts 0 and 1 live on nodes 0 and 1 only
    weights = replica_weights(placement, Topology(4, 1, 2), "nearest")
    np.testing.assert_allclose(weights, 0.5)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_rules_agree_with_the_plan(shape):
    placement = Placement(np.arange(shape.topology.num_slots, dtype=np.int32)[None] % shape.experts)
    rows = shape.tokens(1, 64)[0]
    for rule in ("hash", "nearest"):
        slots = route(rows, np.arange(64) % shape.topology.num_ranks, make_plan(placement, shape.topology, rule), 0)
        assert (placement.phy2log[0][slots] == rows).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"topk_ids": np.zeros(3, int)}, "topk_ids"),
        ({"topk_ids": np.zeros((3, 1))}, "topk_ids"),
        ({"topk_ids": np.full((3, 1), 9)}, "ids 9..9"),
        ({"source_rank": np.zeros(2, int)}, "source_rank"),
        ({"source_rank": np.full(3, 4)}, "source_rank"),
        ({"layer": 1}, "layer"),
        ({"rule": "random"}, "'random'"),
        ({"token_index": np.full(3, -1)}, "token_index"),
        ({"token_index": np.zeros(2, int)}, "token_index"),
    ],
)
def test_bad_input_is_one_line(change, word):
    plan = make_plan(Placement(np.array([[0, 1, 0, 1]], np.int32)), Topology(2, 2, 1))
    arguments = {"topk_ids": np.zeros((3, 1), int), "source_rank": np.zeros(3, int), "plan": plan, "layer": 0} | change
    with pytest.raises(PluginError, match=word) as caught:
        route(**arguments)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)
