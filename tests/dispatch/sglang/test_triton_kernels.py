"""The Triton kernel without a GPU: run by Triton's interpreter, and compiled for GPUs. It comes with this environment.

The interpreter must be chosen before Triton is imported, so this file's first test runs the others in a process of
their own.
"""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")

from cover_passes import CPU, MAX_TOKENS, Run, check_run, runs
from covering import cover_slowly
from eplb_plugin.dispatch.buffers import Counters, LayerTables
from eplb_plugin.dispatch.kernels import CoverTables, cover
from eplb_plugin.doctor.lanes import make_plan
from eplb_plugin.recording.recorder import Recorder
from interpreted import compiled, in_interpreter, run_interpreted
from recorded import Reference, counters


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    assert "25 passed" in run_interpreted(__file__)


@in_interpreter
@settings(deadline=None, max_examples=60, derandomize=True)
@given(runs())
def test_the_kernel_is_route_and_counts_exactly(run: Run) -> None:
    """Over any steps: slots bit for bit; padding, dummy steps and holes are left out."""
    from eplb_plugin.dispatch.triton_kernels import launch

    def kernel(ids: torch.Tensor, tables: LayerTables | torch.Tensor, counters: Counters) -> torch.Tensor:
        slots = torch.empty(ids.shape, dtype=ids.dtype)
        if isinstance(tables, LayerTables):
            launch(ids, slots, counters, tables=tables)
        else:
            launch(ids, slots, counters, rows=tables)
        return slots

    check_run(run, kernel)


@in_interpreter
@pytest.mark.parametrize("by_slots", [False, True])
def test_it_records_alone(by_slots: bool) -> None:
    """For rules that the engine maps by itself: strided ids or slots, and nothing else is written."""
    from eplb_plugin.dispatch.triton_kernels import launch

    recorder, reference = Recorder(1, 9, 3, MAX_TOKENS, 8, torch.device("cpu")), Reference(1, 9, 3, 8)
    phy2log, experts = torch.arange(12) % 9, torch.rand(18, 9).argsort(1)
    slots = torch.where((experts < 3) & (torch.rand(18, 9) < 0.5), experts + 9, experts)
    ids, chosen = (slots if by_slots else experts)[:, 1:7:2], experts[:, 1:7:2]
    before, slot_load = ids.clone(), torch.zeros(12, dtype=torch.int32)
    recorder.expect([15])
    launch(ids, None, counters(recorder, 0, 15, slot_load=slot_load), phy2log=phy2log if by_slots else None)
    recorder.fold()
    reference.rows += [row[None] for row in chosen[:15].numpy()]
    reference.agrees_with(recorder)
    assert torch.equal(ids, before)
    assert not slot_load.any()


@in_interpreter
@pytest.mark.parametrize("nodes", [1, 2, 31, 32, 33, 61, 62])
@pytest.mark.parametrize("experts", [16, 256, 512])
def test_borders_of_cover_s_keys(experts: int, nodes: int) -> None:
    """As many nodes as a mask has bits, on both sides of 32 bits, and 16 experts a token: as the description reads.

    All rows are of routers, and counted: no two of a row are taken for the same.
    """
    from eplb_plugin.dispatch.triton_kernels import launch

    rng, top_k, tokens, source = np.random.default_rng([experts, nodes]), 16, 5, nodes - 1
    plan = make_plan(rng, "cover", layers=1, experts=experts, nodes=nodes, spare=experts)
    ids = rng.random((tokens, experts)).argsort(1)[:, :top_k]
    expected = [cover_slowly(plan, row, source, index) for index, row in enumerate(ids.tolist())]
    tables, given = CoverTables(plan, [source], CPU).layer(0), torch.from_numpy(ids)
    recorders = [Recorder(1, experts, top_k, tokens, tokens, CPU) for _ in range(2)]
    slots = torch.empty_like(given)
    launch(given, slots, counters(recorders[0], 0), tables=tables)
    assert slots.tolist() == expected
    assert cover(given, tables, counters(recorders[1], 0)).tolist() == expected
    for recorder in recorders:
        recorder.expect([tokens])
        recorder.fold()
        Reference(1, experts, top_k, tokens, [row[None] for row in ids]).agrees_with(recorder)


@in_interpreter
def test_one_repeat_among_many_experts() -> None:
    """22 experts a token: wherever the two equal ids stand, that row alone is left out."""
    from eplb_plugin.dispatch.triton_kernels import launch

    top_k, experts = 22, 64
    ids = np.argsort(np.random.default_rng(0).random((top_k, experts)), axis=1)[:, :top_k]
    for first in range(top_k - 1):
        ids[first, top_k - 1 - first // 2] = ids[first, first // 2]
    recorder = Recorder(1, experts, top_k, top_k, top_k, CPU)
    recorder.expect([top_k])
    launch(torch.from_numpy(ids), None, counters(recorder, 0))
    recorder.fold()
    assert recorder.totals[0, -2:].tolist() == [1, top_k - 1]
    Reference(1, experts, top_k, top_k, [row[None] for row in ids]).agrees_with(recorder)


@compiled
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("task", "nodes"), [("COVER", 4), ("COVER", 40), ("LOOK_UP", 1), ("TRANSLATE", 1), ("RECORD", 1)]
)
def test_it_compiles_for_gpus(capability: int, task: str, nodes: int) -> None:
    """Down to machine code, which the interpreter does not check: types, loops and atomics are ones that GPUs have."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb_plugin.dispatch import triton_kernels

    types = {"ids": "*i64", "slots": "*i64", "nodes": "*i64", "rows": "*i16", "held": "i64"}
    types |= {
        "enabled": "*i1",
        "pairs_enabled": "*i1",
        "slots_enabled": "*i1",
        "table": "*i64" if task == "TRANSLATE" else "*i32",
    }
    types |= {name: "*i32" for name in ("counts", "copies", "load", "pairs", "slot_load", "real")}
    constants = {"K": 6, "WIDTH": 8, "TOKENS": 16, "NODES": nodes, "TASK": getattr(triton_kernels, task).value}
    names = triton_kernels.pass_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # it warns where nobody says
    made = triton.compile(
        ASTSource(triton_kernels.pass_kernel, signature, constants), target=GPUTarget("cuda", capability, 32)
    )
    assert len(made.asm["cubin"]) > 0
    counted = re.findall(r"(?:red|atom)\.global\S*\.add\.u32", made.asm["ptx"])
    assert counted  # integers, whose order does not matter
    assert not re.findall(r"\.f(?:16|32|64)\s", made.asm["ptx"])
