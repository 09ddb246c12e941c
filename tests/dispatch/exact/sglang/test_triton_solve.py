"""Quotas and rows by Triton without a GPU: run by Triton's interpreter, and compiled for GPUs.

The interpreter must be chosen before Triton is imported, so this file's first test runs the others in a process of
their own.
"""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from eplb_plugin import Placement, Topology
from eplb_plugin.dispatch.exact.kernels import own_row
from eplb_plugin.dispatch.exact.tables import ExactTables, replicas_in
from eplb_plugin.planning.planner import plan_of
from exact_steps import CPU
from interpreted import compiled, in_interpreter, run_interpreted

CASES = 12


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    assert f"{CASES} passed" in run_interpreted(__file__)


@in_interpreter
@pytest.mark.parametrize("seed", range(CASES))
def test_quotas_and_rows_are_those_of_the_compiled_loops(seed: int) -> None:
    """Bit for bit, of few and many selections, idle sources, and experts with any number of replicas on any nodes."""
    from eplb_plugin.dispatch.exact.triton_solve import launch_solve

    rng = np.random.default_rng(seed)
    nodes, per_node, experts = (int(number) for number in rng.integers(1, [5, 4, 9]))
    ranks, wishes = nodes * per_node, nodes + 1
    node_of_rank = rng.permutation(np.arange(ranks) % nodes).tolist()
    topology = Topology.from_nodes(node_of_rank, -(-experts // ranks) + int(rng.integers(1, 3)))
    spare = rng.choice(experts, topology.num_slots - experts, p=rng.dirichlet(np.ones(experts)))
    phy2log = rng.permutation(np.concatenate([np.arange(experts), spare]))[None].astype(np.int32)
    together = int(rng.choice([number for number in range(1, ranks + 1) if ranks % number == 0]))
    first = int(rng.integers(ranks // together)) * together
    plan = plan_of(Placement(phy2log), topology, "cover")
    tables = ExactTables(plan, range(first, first + together), CPU, float(rng.choice([0.0, 0.1])))
    layer = tables.layer(0)
    replicas, most = replicas_in(layer), int(rng.choice([2, 30, 3000]))
    gathered = rng.integers(0, most, (tables.sources, tables.payload), dtype=np.int32)
    asked = gathered[:, :-ranks].reshape(tables.sources, -1, wishes)
    asked[:, len(replicas.expert) :] = 0
    if rng.random() < 0.5:  # all crowd on one node, which cannot have them
        asked[..., 1:] = 0
    readable = np.zeros((len(replicas.slot), wishes), bool)
    for row in range(len(replicas.expert)):
        places = slice(replicas.start[row], replicas.start[row + 1])
        on = np.isin(np.arange(wishes), [*replicas.node[places], topology.num_nodes])
        asked[:, row] *= on  # nobody wishes for a node without a replica
        readable[places] = on
    gathered[:, -ranks:] //= int(rng.choice([1, 100]))
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
