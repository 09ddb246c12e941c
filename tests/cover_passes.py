"""Forward passes for whatever maps and records in one go, and what they must leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import Plan, route
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from eplb_plugin.engines.device_tables import DispatchTables
from eplb_plugin.recording.recorder import Recorder
from recorded import UNBOUNDED, Reference, counters, spoiled
from strategies import cover_plans, weighted_plans

CPU, SAMPLE_ROWS, MAX_TOKENS = torch.device("cpu"), 7, 20
LAYERS = 2  # of the plans drawn
KEPT = 16  # rows of the buffer: what is above is mapped, and not recorded

Kernel = Callable[[torch.Tensor, LayerTables | torch.Tensor, Counters], torch.Tensor]  # tables: of cover, or rows


class Step(NamedTuple):
    """ids: [L, T, k] of this rank; real: tokens of the whole batch that are no padding, or UNBOUNDED; counted: in a
    window of the plugin; paired: in one that a plan is made from; slots_counted: in one of the engine.
    """

    ids: NDArray[np.int64]
    real: int
    counted: bool
    paired: bool
    slots_counted: bool
    dummy: bool


class Run(NamedTuple):
    """shared: columns of shared experts beside the ids, in the same tensor."""

    plan: Plan
    source: int
    chunk: int
    dtype: torch.dtype
    shared: int
    steps: list[Step]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Batches of 0 to 20 tokens, with rows that no router makes; some dummy, some outside windows; up to 40 nodes."""
    plan = draw(st.one_of(weighted_plans(), *(cover_plans(max_nodes=nodes) for nodes in (1, 2, 4, 40))))
    experts = plan.placement.num_experts
    top_k = min(draw(st.integers(1, 17)), experts)
    chunk = draw(st.integers(0, 1))
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        tokens = draw(st.integers(0, MAX_TOKENS))
        ids = np.argsort(rng.random((LAYERS, tokens, experts)), axis=2)[:, :, :top_k]
        ids = spoiled(rng, ids, experts)
        real = draw(st.one_of(st.integers(0, 2 * tokens), st.just(UNBOUNDED)))
        steps.append(Step(ids, real, *(draw(st.booleans()) for _ in range(4))))
    source = draw(st.integers(0, plan.topology.num_ranks - 1))
    return Run(plan, source, chunk, draw(st.sampled_from([torch.int32, torch.int64])), draw(st.integers(0, 2)), steps)


def check_run(run: Run, kernel: Kernel) -> None:
    """Slots are `route`'s, of every row, and so is the engine's count of them; load, pairs and sample are those of all
    real rows counted one by one, without those that name an expert twice.
    """
    plan, top_k = run.plan, run.steps[0].ids.shape[2]
    experts, num_slots = plan.placement.num_experts, plan.placement.num_slots
    recorder = Recorder(LAYERS, experts, top_k, KEPT, SAMPLE_ROWS, CPU)
    reference = Reference(LAYERS, experts, top_k, SAMPLE_ROWS)
    tables = DispatchTables(plan, [run.source], CPU)
    slot_load, expected_load = (torch.zeros(LAYERS, num_slots, dtype=torch.int32) for _ in range(2))
    for step in run.steps:
        own = max(0, min(step.ids.shape[1], step.real - run.chunk * step.ids.shape[1]))
        recorder.count(step.counted, step.paired)
        recorder.expect([step.real])
        for layer in range(LAYERS):
            wide = np.pad(step.ids[layer], ((0, 0), (0, run.shared)), constant_values=experts)
            ids = torch.from_numpy(wide).to(run.dtype)[:, :top_k]
            given = counters(recorder, layer, step.real, run.chunk, slot_load=slot_load[layer])
            given.slots_enabled.fill_(step.slots_counted)
            slots = kernel(ids, tables.layer(layer), given)
            expected = route(np.where(step.ids[layer] < experts, step.ids[layer], -1), run.source, plan, layer)
            assert slots.dtype == run.dtype
            np.testing.assert_array_equal(slots.numpy(), expected)
            if step.slots_counted:
                taken = torch.from_numpy(expected[:own][expected[:own] >= 0]).long()
                expected_load[layer] += torch.bincount(taken, minlength=num_slots).int()
        recorder.drop() if step.dummy else recorder.fold()
        if step.counted and not step.dummy:
            reference.add(list(step.ids[:, : min(own, KEPT)].transpose(1, 0, 2)), step.paired)
        assert (recorder.stage == -1).all()
    reference.agrees_with(recorder)
    np.testing.assert_array_equal(slot_load, expected_load)
