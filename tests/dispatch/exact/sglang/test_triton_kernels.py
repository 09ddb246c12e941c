"""The Triton kernels of `exact` without a GPU: run by Triton's interpreter, and compiled for GPUs.

The interpreter must be chosen before Triton is imported, so this file's first test runs the others in a process of
their own.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")

from eplb_plugin import Placement, Topology
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.exact.kernels import choose, count
from eplb_plugin.dispatch.exact.tables import ExactLayer
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from exact_steps import CPU, ExactStep, exact_steps, gather, layers_of
from interpreted import compiled, in_interpreter, run_interpreted
from recorded import counters


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    assert "3 passed" in run_interpreted(__file__)


def launched_count(ids: torch.Tensor, layer: ExactLayer) -> torch.Tensor:
    from eplb_plugin.dispatch.exact.triton_kernels import launch_count

    for part in layer.work:
        part.fill_(-7)  # what another layer left
    launch_count(ids, layer)
    return layer.work.mine


def launched_choose(ids: torch.Tensor, layer: ExactLayer, gathered: torch.Tensor, counted: Counters) -> torch.Tensor:
    from eplb_plugin.dispatch.exact.triton_kernels import launch_choose

    slots = torch.empty_like(ids)
    launch_choose(ids, layer, gathered, slots, counted)
    return slots


def check(step: ExactStep, ranks: set[int]) -> None:
    """Counts and slots of these ranks are those of the compiled loops, and so is what is recorded."""
    layers, experts = layers_of(step), step.plan.placement.num_experts
    gathered = gather(step, layers, count)
    for rank in sorted(ranks):
        ids, layer = torch.from_numpy(step.ids[rank // step.together]), layers[rank]
        recorders = [Recorder(1, experts, ids.shape[1], 16, 8, CPU) for _ in range(2)]
        loads = torch.zeros(2, step.plan.topology.num_slots, dtype=torch.int32)
        counted = [counters(one, 0, 20, slot_load=load) for one, load in zip(recorders, loads, strict=True)]
        assert torch.equal(launched_count(ids, layer), gathered[rank // step.together])
        found = launched_choose(ids, layer, gathered, counted[0])
        assert torch.equal(found, choose(ids, layer, gathered, counted[1]))
        assert torch.equal(loads[0], loads[1])
        assert all(torch.equal(one, other) for one, other in zip(*(one.passing(0) for one in recorders), strict=True))


@in_interpreter
@settings(deadline=None, max_examples=10, derandomize=True)
@given(exact_steps())
def test_the_kernels_are_the_compiled_loops(step: ExactStep) -> None:
    """Over any step, whoever owns its tokens: bit for bit."""
    check(step, {0, step.plan.topology.num_ranks - 1})


@in_interpreter
@pytest.mark.parametrize(("rule", "tolerance"), [("hash", 0.0), ("cover", 0.05)])
def test_more_than_one_tile(rule: Any, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than parts have in a tile, more replicated experts, sources and counts than are added at once."""
    from eplb_plugin.dispatch.exact import triton_kernels

    monkeypatch.setattr(triton_kernels, "PARTS", 4)
    rng, topology = np.random.default_rng(7), Topology(4, 6, 5)
    often = np.repeat([3, 5, 9], [15, 9, 4])
    slots = np.concatenate([np.arange(64), often, rng.permutation(64)[:28]])
    plan = plan_of(Placement(rng.permutation(slots)[None].astype(np.int32)), topology, rule)
    tokens = [int(number) for number in rng.integers(0, 20, topology.num_ranks)]
    tokens[-1] = 21
    ids = [np.argsort(rng.random((number, 64)), axis=1)[:, :32] for number in tokens]
    step = ExactStep(plan, ids, 1, tolerance)
    assert layers_of(step)[0].maps.sizes[0] > 28
    check(step, {topology.num_ranks - 1})


TYPES = {"ids": "*i64", "slots": "*i64", "nodes": "*i64", "rows": "*i16", "held": "i64"}
TYPES |= {name: "*i1" for name in ("enabled", "pairs_enabled", "slots_enabled")}
POINTERS = "row_of only_slot start slot parts mine quotas load pairs slot_load real"
TYPES |= {name: "*i32" for name in POINTERS.split()}
TILE = {"K": 6, "WIDTH": 8, "TOKENS": 8, "NODES": 40, "COVERS": True}


@compiled
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [("parts_kernel", {**TILE, "CLEARED": 512}), ("map_kernel", TILE), ("scan_kernel", {"PARTS": 128, "COLUMNS": 32})],
)
def test_they_compile_for_gpus(kernel: str, constants: dict[str, Any], capability: int) -> None:
    """Down to machine code: integers only, no counter's old value is asked for, and little shared memory is used."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb_plugin.dispatch.exact import triton_kernels

    function = getattr(triton_kernels, kernel)
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in function.arg_names}
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # it warns where nobody says
    made = triton.compile(ASTSource(function, signature, constants), target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 0
    assert made.metadata.shared <= 96 << 10
    assert not re.findall(r"\batom\.", made.asm["ptx"])
    assert not re.findall(r"\.f(?:16|32|64)\s", made.asm["ptx"])
