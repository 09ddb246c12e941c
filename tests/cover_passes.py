"""Forward passes for whatever maps and records in one go, and what they must leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import Plan, route
from eplb_plugin.dispatch.kernels import Counters, CoverTables, LayerTables
from eplb_plugin.recording.recorder import Recorder
from strategies import cover_plans

CPU, SAMPLE_ROWS, MAX_TOKENS = torch.device("cpu"), 7, 20
LAYERS = 2  # of `cover_plans`
UNBOUNDED = 2**31 - 1  # real tokens where nobody says how many

Kernel = Callable[[torch.Tensor, LayerTables, Counters], torch.Tensor]


class Step(NamedTuple):
    """ids: [L, T, k] of this rank; real: tokens of the whole batch that are no padding, or UNBOUNDED; counted: in a
    window.
    """

    ids: NDArray[np.int64]
    real: int
    counted: bool
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
    """Batches of 0 to 20 tokens with holes and padding, some dummy, some outside the window; up to 40 nodes."""
    plan = draw(cover_plans(max_nodes=draw(st.sampled_from([1, 2, 4, 40]))))
    experts, top_k = plan.placement.num_experts, draw(st.integers(1, 6))
    top_k, chunk = min(top_k, experts), draw(st.integers(0, 1))
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        tokens = draw(st.integers(0, MAX_TOKENS))
        ids = np.argsort(rng.random((LAYERS, tokens, experts)), axis=2)[:, :, :top_k]
        ids[:, :, 1:][rng.random((LAYERS, tokens, top_k - 1)) < 0.15] = -1
        ids[:, rng.random(tokens) < 0.1] = -1
        real = draw(st.one_of(st.integers(0, 2 * tokens), st.just(UNBOUNDED)))
        steps.append(Step(ids, real, draw(st.booleans()), draw(st.booleans())))
    source = draw(st.integers(0, plan.topology.num_ranks - 1))
    return Run(plan, source, chunk, draw(st.sampled_from([torch.int32, torch.int64])), draw(st.integers(0, 2)), steps)


def check_run(run: Run, kernel: Kernel) -> None:
    """Slots are `route`'s; load, pairs, sample and slot load are those of the recorder that counts with torch."""
    plan, top_k = run.plan, run.steps[0].ids.shape[2]
    sizes = (LAYERS, plan.placement.num_experts, top_k, MAX_TOKENS, SAMPLE_ROWS, CPU)
    by_kernel, by_torch = Recorder(*sizes, by_kernel=True), Recorder(*sizes)
    tables = CoverTables(plan, [run.source], CPU)
    slot_load, expected_load = (torch.zeros(LAYERS, plan.placement.num_slots, dtype=torch.int32) for _ in range(2))
    enabled, real = torch.zeros((), dtype=torch.bool), torch.zeros((), dtype=torch.int32)
    for step in run.steps:
        enabled.fill_(step.counted)
        real.fill_(step.real)
        own = max(0, min(step.ids.shape[1], step.real - run.chunk * step.ids.shape[1]))
        for recorder in (by_kernel, by_torch):
            recorder.expect([step.real])
        for layer in range(LAYERS):
            wide = np.pad(step.ids[layer], ((0, 0), (0, run.shared)), constant_values=plan.placement.num_experts)
            ids = torch.from_numpy(wide).to(run.dtype)[:, :top_k]
            counters = Counters(*by_kernel.passing(layer), slot_load[layer], enabled, real, run.chunk)
            slots = kernel(ids, tables.layer(layer), counters)
            expected = route(step.ids[layer], run.source, plan, layer)
            assert slots.dtype == run.dtype
            np.testing.assert_array_equal(slots.numpy(), expected)
            by_torch.stage_rows(layer, ids, real, run.chunk)
            if step.counted:
                taken = torch.from_numpy(expected[:own][expected[:own] >= 0]).long()
                expected_load[layer] += torch.bincount(taken, minlength=slot_load.shape[1]).int()
        for recorder in (by_kernel, by_torch):
            recorder.drop() if step.dummy else recorder.fold(step.counted)
    for name in ("load", "coactivation", "sample", "num_tokens", "stage"):
        np.testing.assert_array_equal(getattr(by_kernel, name), getattr(by_torch, name), err_msg=name)
    np.testing.assert_array_equal(slot_load, expected_load)
