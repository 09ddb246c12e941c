"""Quotas and rows by Triton without a GPU: run by Triton's interpreter, and compiled for GPUs.

The interpreter must be chosen before Triton is imported, so this file's first test runs the others in a process of
their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from eplb_plugin.dispatch.exact.kernels import own_row
from eplb_plugin.dispatch.exact.tables import ExactTables, replicas_in
from eplb_plugin.planning.planner import plan_of
from exact_steps import CPU
from strategies import placements, topologies

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs the compiler")


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 passed" in done.stdout


@in_interpreter
@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.data())
def test_quotas_and_rows_are_those_of_the_compiled_loops(data: st.DataObject) -> None:
    """Bit for bit, of few and many selections, idle sources, and experts with any number of replicas on any nodes."""
    from eplb_plugin.dispatch.exact.triton_solve import launch_solve

    experts = data.draw(st.integers(1, 8))
    topology = data.draw(topologies(experts))
    plan = plan_of(data.draw(placements(1, experts, topology.num_slots)), topology, "cover")
    ranks, wishes = topology.num_ranks, topology.num_nodes + 1
    together = data.draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
    first = data.draw(st.integers(0, ranks // together - 1)) * together
    tolerance = data.draw(st.sampled_from([0.0, 0.1]))
    tables = ExactTables(plan, range(first, first + together), CPU, tolerance)
    layer, rng = tables.layer(0), np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    replicas, most = replicas_in(layer), data.draw(st.sampled_from([2, 30, 3000]))
    gathered = rng.integers(0, most, (tables.sources, tables.payload), dtype=np.int32)
    asked = gathered[:, :-ranks].reshape(tables.sources, -1, wishes)
    asked[:, len(replicas.expert) :] = 0
    readable = np.zeros((len(replicas.slot), wishes), bool)
    for row in range(len(replicas.expert)):
        places = slice(replicas.start[row], replicas.start[row + 1])
        on = np.isin(np.arange(wishes), [*replicas.node[places], topology.num_nodes])
        asked[:, row] *= on  # nobody wishes for a node without a replica
        readable[places] = on
    gathered[:, -ranks:] //= data.draw(st.sampled_from([1, 100]))
    gathered[rng.random(tables.sources) < 0.2] = 0
    expected = own_row(gathered, layer, replicas)
    launch_solve(torch.from_numpy(gathered), layer)
    found = layer.work.row[: len(readable)].numpy()
    np.testing.assert_array_equal(found[readable], expected[readable])


@compiled
@pytest.mark.parametrize(("capability", "copies", "rows"), [(80, 4, 64), (90, 16, 16), (100, 2, 64)])
def test_it_compiles_for_gpus(capability: int, copies: int, rows: int) -> None:
    """Down to machine code: integers only, no counter's old value is asked for, and little shared memory is used."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb_plugin.dispatch.exact.triton_solve import solve_kernel

    constants = {"NODES": 40, "WIDE": 64, "RANKS": 64, "LANES": 32, "COPIES": copies, "ROWS": rows}
    numbers = ("sources", "source", "payload", "num_ranks", "tolerance")
    signature = {name: "i32" if name in numbers else "*i32" for name in solve_kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # it warns where nobody says
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(ASTSource(solve_kernel, signature, constants), target=target, options={"num_warps": 8})
    assert len(made.asm["cubin"]) > 0
    assert made.metadata.shared <= 96 << 10
    assert not re.findall(r"\batom\.", made.asm["ptx"])
    assert not re.findall(r"\.f(?:16|32|64)\s", made.asm["ptx"])
