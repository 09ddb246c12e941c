"""Kernels compiled ahead: everything that plans need; and a command that has to compile says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COVERED = """
import sys
import numpy as np
from eplb_plugin import RoutingStatistics, Topology, plan, resplit
from eplb_plugin.runtime.precompile import compile_for
from eplb_plugin.runtime.outcome import assess
from eplb_plugin.plan_types import PlanOptions
from eplb_plugin.workloads.routing import ClusteredRouter
from compiled_kernels import compiled

policy, rule, nodes, groups = *sys.argv[1:3], *map(int, sys.argv[3:])
compile_for(policy, rule)
assert "torch" not in sys.modules
known, made = compiled(), None
windows = [
    RoutingStatistics.from_topk(ClusteredRouter(2, 48, 6, strength=2.0, skew=skew).window(512), 48)
    for skew in (0.0, 1.0, 0.3)
]
for window in (*windows[:2], windows[1].merge(windows[2])):
    for options in (PlanOptions(), PlanOptions(max_moved_slots=4, effort="fast")):
        before, topology = made, Topology(nodes, 4, 15 // nodes)
        made = plan(
            window, topology, policy=policy, dispatch=rule, previous=before, num_groups=groups, options=options
        )
        assess(window, before or made, made)
if rule in ("weighted", "cover"):
    resplit(made, RoutingStatistics(windows[0].load))
print(len(known), sorted(compiled() - known))
"""


def ran(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([*map(str, Path(__file__).parents[1:3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize(
    ("policy", "rule", "nodes", "groups"),
    [
        ("balanced", "hash", 1, 1),
        ("affinity", "nearest", 3, 1),
        ("affinity", "weighted", 3, 3),
        ("affinity", "cover", 1, 1),
    ],
)
def test_nothing_is_left_to_compile_for_plans(policy: str, rule: str, nodes: int, groups: int) -> None:
    """After `compile_for`, plans of that policy and rule call no kernel of other types, from scratch or warm, of other
    sizes, with parts, bounds or expert groups; and it needs no torch."""
    number, later = ran("-c", COVERED, policy, rule, str(nodes), str(groups)).stdout.strip().split(" ", 1)
    assert int(number) > 0
    assert later == "[]"


COMMAND = """
import numpy as np
from eplb_plugin import cli

def command():
    from eplb_plugin.planning.replicas.counts import apportion
    print(apportion(np.array([3.0, 1.0]), 3, 2))

cli._app = command
cli.app()
"""


def test_a_command_says_that_it_compiles(tmp_path: Path) -> None:
    """One line, however many kernels there are; none where the cache is filled."""
    first, second = (ran("-c", COMMAND, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr.count("compiling the planner for this machine, once") == len(first.stderr.splitlines()) == 1
    assert second.stderr == ""
    assert first.stdout == second.stdout == "[2 1]\n"
