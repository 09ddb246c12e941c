"""Mapping and recording in one go, on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from cover_passes import CPU, Run, check_run, runs
from eplb_plugin import Placement, Plan, PluginError, Topology, route
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from eplb_plugin.dispatch.cover import MOST_WEIGHT, cover_maps
from eplb_plugin.dispatch.kernels import CoverTables, cover, look_up, record
from eplb_plugin.recording.recorder import Recorder
from recorded import counters
from strategies import QUICK

TOPOLOGY = Topology(4, 1, 2)
PLACEMENT = Placement(np.array([[3, 4, 0, 1, 0, 1, 2, 5]], np.int32))  # 0 and 1 are together on nodes 1 and 2


def plan_with(weights: list[int], placement: Placement = PLACEMENT) -> Plan:
    return Plan(placement, TOPOLOGY, "cover", np.ones((1, 8)), 0.0, cover_weights=np.array([weights], np.int32))


def uncounted(top_k: int, experts: int = 6) -> Counters:
    return counters(Recorder(1, experts, top_k, 64, 4, CPU), 0, enabled=False)


@QUICK
@given(runs())
def test_the_compiled_loops_are_route_and_count_exactly(run: Run) -> None:
    """Over any steps: slots bit for bit; padding, dummy steps and holes are left out."""
    check_run(run, mapped)


def mapped(ids: torch.Tensor, tables: LayerTables | torch.Tensor, counted: Counters) -> torch.Tensor:
    return cover(ids, tables, counted) if isinstance(tables, LayerTables) else look_up(ids, tables, counted)


@QUICK
@given(runs())
def test_slots_are_recorded_as_their_experts(run: Run) -> None:
    """Where the engine maps: from its slots the same counts; what is no routed slot is nobody's."""

    def by_slots(ids: torch.Tensor, tables: LayerTables | torch.Tensor, counted: Counters) -> torch.Tensor:
        slots = mapped(ids, tables, counted._replace(enabled=torch.tensor(False)))
        layer = int(counted.load.storage_offset() > 0)
        wide = torch.where(slots < 0, run.plan.placement.num_slots + 1, slots) if run.shared else slots
        record(wide, counted, torch.from_numpy(run.plan.placement.phy2log[layer]).long())
        return slots

    check_run(run, by_slots)


def test_refilled_tables_keep_their_addresses() -> None:
    """A graph holds the addresses: new weights and a new placement are filled in, and the next pass follows them."""
    tables = CoverTables(plan_with([1] * 8), [3], CPU)
    layer = tables.layer(0)
    addresses = [part.data_ptr() for part in layer[:3]]
    other = Placement(np.array([[0, 1, 2, 0, 4, 5, 0, 3]], np.int32))
    ids = torch.tensor([[0, 1, 2]] * 20)
    for plan in (plan_with([1, 1, 200, 1, 3, 1, 1, 1]), plan_with([9] * 8, other)):
        tables.put(cover_maps(plan, [0]), [0])
        assert cover(ids, layer, uncounted(3)).tolist() == route(ids.numpy(), 3, plan, 0).tolist()
    assert [part.data_ptr() for part in tables.layer(0)[:3]] == addresses


@pytest.mark.parametrize("owners", [[0, 1], [2, 3], [0, 1, 2, 3]])
def test_all_owners_of_a_token_choose_alike(owners: list[int]) -> None:
    """Ranks that route the same token compute it together: a choice that differed would be computed twice or never."""
    plan, ids = plan_with([5, 1, 2, 7, 1, 1, 3, 1]), torch.arange(60).reshape(20, 3) % 6
    chosen = [
        cover(ids, CoverTables(plan, order, CPU).layer(0), uncounted(3)).tolist() for order in (owners, owners[::-1])
    ]
    assert chosen[0] == chosen[1]


def test_a_token_on_several_nodes_uses_the_copies_of_all() -> None:
    """Its own nodes cost nothing: a group on nodes 0 and 1 takes experts 0 and 1 there, never on node 2."""
    tables, ids = CoverTables(plan_with([1] * 8), [0, 1], CPU), torch.tensor([[0, 3], [1, 4], [1, 3]] * 10)
    assert set(cover(ids, tables.layer(0), uncounted(2)).flatten().tolist()) == {0, 1, 2, 3}


def test_unknown_ids_are_left_out() -> None:
    """Rows of padding may hold anything."""
    slots = cover(torch.tensor([[6, 0], [-7, 99]]), CoverTables(plan_with([1] * 8), [1], CPU).layer(0), uncounted(2))
    assert slots.tolist() == [[-1, 2], [-1, -1]]


@pytest.mark.parametrize("weight", [0, MOST_WEIGHT + 1])
def test_a_weight_that_does_not_fit_is_refused(weight: int) -> None:
    with pytest.raises(PluginError, match=r"cover_weights: found .*, expected 1\.\.255"):
        cover_maps(plan_with([1, 1, 1, weight, 1, 1, 1, 1]), [0])


def test_too_many_nodes_are_refused() -> None:
    plan = Plan(Placement(np.zeros((1, 63), np.int32)), Topology(63, 1, 1), "cover", np.ones((1, 63)), 0.0)
    with pytest.raises(PluginError, match="nodes: found 63, expected at most 62 for dispatch cover"):
        cover_maps(plan, [0])
