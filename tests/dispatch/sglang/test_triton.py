"""The Triton kernel without a GPU: run by Triton's interpreter, and compiled for GPUs. It comes with this environment.

The interpreter must be chosen before Triton is imported, so this file's first test runs the others in a process of
their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")

from cover_passes import MAX_TOKENS, Run, check_run, runs
from eplb_plugin.dispatch.kernels import Counters, LayerTables
from eplb_plugin.recording.recorder import Recorder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs the compiler")


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "2 passed" in done.stdout


@in_interpreter
@settings(deadline=None, max_examples=60, derandomize=True)
@given(runs())
def test_the_kernel_is_route_and_records_as_torch_does(run: Run) -> None:
    """Over any steps: slots bit for bit, counts exactly; padding, dummy steps and holes are left out."""
    from eplb_plugin.dispatch.triton_kernels import launch

    def kernel(ids: torch.Tensor, tables: LayerTables, counters: Counters) -> torch.Tensor:
        slots = torch.empty_like(ids)
        launch(ids, slots, tables, counters)
        return slots

    check_run(run, kernel)


@in_interpreter
def test_it_records_alone() -> None:
    """For the rules that the engine maps by itself: the same counts as torch's, strided ids, and no slot written."""
    from eplb_plugin.dispatch.triton_kernels import launch

    sizes = (1, 9, 3, MAX_TOKENS, 8, torch.device("cpu"))
    by_kernel, by_torch = Recorder(*sizes, by_kernel=True), Recorder(*sizes)
    ids = torch.rand(18, 9).argsort(1)[:, 1:7:2]
    before, slot_load = ids.clone(), torch.zeros(12, dtype=torch.int32)
    real, enabled = torch.tensor(15, dtype=torch.int32), torch.tensor(True)
    launch(ids, None, None, Counters(*by_kernel.passing(0), slot_load, enabled, real, 0))
    by_torch.stage_rows(0, ids, real)
    for recorder in (by_kernel, by_torch):
        recorder.expect([15])
        recorder.fold()
    for name in ("load", "coactivation", "sample"):
        assert torch.equal(getattr(by_kernel, name), getattr(by_torch, name)), name
    assert torch.equal(ids, before)
    assert not slot_load.any()


@compiled
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("map_too", "nodes"), [(True, 4), (True, 40), (False, 1)])
def test_it_compiles_for_gpus(capability: int, map_too: bool, nodes: int) -> None:
    """Down to machine code, which the interpreter does not check: types, loops and atomics are ones that GPUs have."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb_plugin.dispatch.triton_kernels import cover_kernel

    types = {"ids": "*i64", "slots": "*i64", "nodes": "*i64", "rows": "*i16", "enabled": "*i1", "held": "i64"}
    types |= {name: "*i32" for name in ("counts", "copies", "load", "pairs", "slot_load", "real")}
    constants = {"K": 6, "WIDTH": 8, "TOKENS": 16, "NODES": nodes, "MAP": map_too}
    names = cover_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # it warns where nobody says
    made = triton.compile(ASTSource(cover_kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 0
    counted = re.findall(r"(?:red|atom)\.global\S*\.add\.u32", made.asm["ptx"])
    assert counted  # integers, whose order does not matter
    assert not re.findall(r"\.f(?:16|32|64)\s", made.asm["ptx"])
