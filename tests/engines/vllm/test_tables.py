"""Tables in vLLM's states: layers look up what the plan's rule says, at addresses that never change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from eplb_cpu_engines.vllm.routing import map_to_physical_and_record
from vllm.distributed.eplb.eplb_state import EplbLayerState

from eplb_plugin import Placement, Plan, PluginError, Topology, plan, route
from eplb_plugin.dispatch.kernels import cover
from eplb_plugin.engines.vllm.tables import Tables
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.workloads.routing import ClusteredRouter
from recorded import counters

EXPERTS, TOPOLOGY = 16, Topology(2, 2, 6)
ROUTER = ClusteredRouter(num_layers=2, num_experts=EXPERTS, top_k=3)
START = Placement(np.tile(np.arange(24, dtype=np.int32) % EXPERTS, (2, 1)))


class Layer:
    """A MoE layer as far as EPLB goes: it holds vLLM's layer state."""

    def __init__(self) -> None:
        self.eplb_state = EplbLayerState()

    def set_eplb_state(self, index: int, load: torch.Tensor, rows: torch.Tensor, counts: torch.Tensor) -> None:
        self.eplb_state.set_layer_state(index, load, rows, counts)

    def routed(self, ids: np.ndarray) -> np.ndarray:
        state, enabled = self.eplb_state, torch.tensor(False)
        rows, counts = state.logical_to_physical_map, state.logical_replica_count
        return map_to_physical_and_record(torch.from_numpy(ids), state.expert_load_view, rows, counts, enabled).numpy()


def new_state(layers: list[Any]) -> SimpleNamespace:
    """vLLM's state of a model that was just registered."""
    return SimpleNamespace(
        model=SimpleNamespace(moe_layers=layers),
        physical_to_logical_map=torch.from_numpy(START.phy2log).long(),
        logical_to_physical_map=torch.full((2, EXPERTS, 1024), -1),
        logical_replica_count=torch.ones((2, EXPERTS), dtype=torch.int64),
        expert_load_pass_buffer=torch.zeros((2, 24), dtype=torch.int32),
    )


def made_plan(rule: str, seed: int) -> Plan:
    from eplb_plugin import RoutingStatistics

    window = RoutingStatistics.from_topk(ROUTER.window(2000, seed), EXPERTS)
    return plan(window, TOPOLOGY, dispatch=rule)


@pytest.mark.parametrize("rule", ["hash", "weighted"])
@pytest.mark.parametrize("rank", [0, 3])
def test_layers_route_by_the_plan_in_force(rule: str, rank: int) -> None:
    """At start, after a switch of all layers, and layer by layer: always `route`, always at the same address."""
    layers = [Layer(), Layer()]
    state = new_state(layers)
    start = plan_of(START, TOPOLOGY, rule)
    tables = Tables(start, [rank], state)
    rows = ROUTER.window(50, 9).astype(np.int64)
    addresses = [tables.rows.data_ptr(), tables.counts.data_ptr()]

    def check(plans: list[Plan]) -> None:
        for index, one in enumerate(plans):
            np.testing.assert_array_equal(layers[index].routed(rows[index]), route(rows[index], rank, one, index))
            np.testing.assert_array_equal(state.physical_to_logical_map[index], one.placement.phy2log[index])
        assert [tables.rows.data_ptr(), tables.counts.data_ptr()] == addresses

    first, second = made_plan(rule, 0), made_plan(rule, 1)
    check([start, start])
    tables.switch([0, 1], first)
    check([first, first])
    for layer in (0, 1):
        tables.switch([layer], second)
        check([second, second if layer else first])


@pytest.mark.parametrize("rank", [0, 3])
def test_under_cover_tokens_follow_every_switch(rank: int) -> None:
    """At start, after a switch of all layers, and layer by layer: always `route`, always at the same address."""
    layers = [Layer(), Layer()]
    start = plan_of(START, TOPOLOGY, "cover")
    tables = Tables(start, [rank], new_state(layers))
    assert tables.cover is not None
    held = [tables.cover.layer(0), tables.cover.layer(1)]
    recorder = Recorder(2, EXPERTS, 3, 50, 8, torch.device("cpu"))
    rows = ROUTER.window(50, 9).astype(np.int64)

    def check(plans: list[Plan]) -> None:
        for index, one in enumerate(plans):
            slots = cover(torch.from_numpy(rows[index]), held[index], counters(recorder, index))
            np.testing.assert_array_equal(slots, route(rows[index], rank, one, index))
            np.testing.assert_array_equal(one.placement.phy2log[index][slots], rows[index])

    first, second = made_plan("cover", 0), made_plan("cover", 1)
    check([start, start])
    tables.switch([0, 1], first)
    check([first, first])
    for layer in (0, 1):
        tables.switch([layer], second)
        check([second, second if layer else first])


def test_stale_entries_are_never_counted() -> None:
    """Under `hash`, a row keeps old ids beyond its count: they are never looked up."""
    layers = [Layer(), Layer()]
    tables = Tables(plan_of(START, TOPOLOGY, "hash"), [0], new_state(layers))
    for experts in ([0] * 9 + list(range(1, 16)), [*range(16)] + [15] * 8):
        placement = Placement(np.tile(np.array(experts, np.int32), (2, 1)))
        tables.switch([0, 1], plan_of(placement, TOPOLOGY, "hash"))
        ids = np.tile(np.arange(16), (40, 1))
        np.testing.assert_array_equal(placement.phy2log[0][layers[0].routed(ids)], ids)


def test_a_layer_that_copies_its_map_is_refused() -> None:
    """It would go on with the map of the start: wrong experts, silently."""

    class Copying(Layer):
        def set_eplb_state(self, index: int, load: torch.Tensor, rows: torch.Tensor, counts: torch.Tensor) -> None:
            super().set_eplb_state(index, load, rows.clone(), counts)

    with pytest.raises(PluginError, match="MoE layer 0: found a copy of the replica map"):
        Tables(plan_of(START, TOPOLOGY, "hash"), [0], new_state([Copying(), Copying()]))
