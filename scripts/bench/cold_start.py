"""`scripts/bench_cold_start`: processes that plan with an empty cache of kernels, then with a filled one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from .output import ROOT, output_parser, put_out
from .worker import ONE_THREAD

POLICIES, RULES = ("affinity", "balanced"), ("hash", "nearest", "weighted", "cover")
PROCESS = """
import json, sys, time
began = time.perf_counter()
from numba.core import event
from eplb_plugin import RoutingStatistics, Topology, plan
from eplb_plugin.workloads.routing import ClusteredRouter

kernels = event.RecordingListener()
event.register("numba:compile", kernels)
window = RoutingStatistics.from_topk(ClusteredRouter(2, 64, 8).window(1024), 64)
made = None
for _ in range(2):
    made = plan(window, Topology(2, 4, 10), policy=sys.argv[1], dispatch=sys.argv[2], previous=made)
compiled = sum(one.is_end for _, one in kernels.buffer)
print(json.dumps({"cpu": time.process_time(), "seconds": time.perf_counter() - began, "compiled": compiled}))
"""


def measured(policy: str, rule: str, cache: str) -> dict[str, Any]:
    """CPU and wall-clock seconds of a process that plans, and the functions that numba compiled in it."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, policy, rule], check=True, capture_output=True, text=True,
        env={**os.environ, **ONE_THREAD, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": paths},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = output_parser("bench_cold_start")
    parser.add_argument("--policy", choices=POLICIES, action="append", help="may be repeated; default: all")
    parser.add_argument("--dispatch", choices=RULES, action="append", help="may be repeated; default: all")
    options = parser.parse_args()
    rows = []
    for policy, rule in product(options.policy or POLICIES, options.dispatch or RULES):
        with tempfile.TemporaryDirectory() as cache:
            empty, filled = (measured(policy, rule, cache) for _ in range(2))
        rows.append({"policy": policy, "rule": rule, "empty": empty, "filled": filled})
    return put_out({"rows": rows}, options, lambda: show(rows))


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("policy", "rule", title="First and second plan of two layers in a process of its own")
    for name in ("empty cache: CPU s", "wall s", "compiled", "filled cache: CPU s", "wall s", "compiled"):
        table.add_column(name, justify="right")
    for row in rows:
        states = (row["empty"], row["filled"])
        cells = [(f"{one['cpu']:.1f}", f"{one['seconds']:.1f}", str(one["compiled"])) for one in states]
        table.add_row(row["policy"], row["rule"], *cells[0], *cells[1])
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
