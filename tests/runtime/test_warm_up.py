"""After a server has started no rebalance compiles anything: each case in a process that has called nothing yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import importlib, pkgutil, sys
import numpy as np, torch
import eplb_plugin
from eplb_plugin.settings.config import parse_config
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.placement import Placement
from eplb_plugin.runtime.agreement import KEEP
from eplb_plugin.runtime.plan_codec import accept
from eplb_plugin.runtime.proposal import propose, propose_weights
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.statistics import RoutingStatistics
from eplb_plugin.topology import Topology
from eplb_plugin.workloads.routing import ClusteredRouter
from compiled_kernels import compiled

policy, rule, settings = sys.argv[1:]
rebalancer = Rebalancer(parse_config({"forecast_windows": 3, "resplit_windows": 1, **eval(settings)}, ""))
topology, layers, experts = Topology(2, 4, 5), 4, 32
recorder = None if rule == "hash" and policy == "balanced" else Recorder(
    layers, experts, 4, 64, 256, torch.device("cpu")
)
entry = ModelEntry("model", topology, policy, rule, experts, 1, [0, 1, 2, 3], recorder, expert_bytes=1000,
                   step_interval=100)
rebalancer.add("key", entry, planning_rank=True)
known = compiled()
placed = Placement(np.arange(40, dtype=np.int32)[None].repeat(layers, 0) % experts)
entry.first = placed
for number in range(4):
    router = ClusteredRouter(layers, experts, 4, num_topics=6, strength=3.0, skew=0.5 * number)
    rows = router.window(512, seed=number)
    rows[1] = np.arange(4)  # all tokens want the same
    rows[2] = np.arange(512 * 4).reshape(512, 4) % experts  # an even layer
    rows[3] = -1 if number == 2 else rows[3]  # one that was idle for a while
    window = RoutingStatistics.from_topk(rows, experts, steps=np.arange(512) // 100)
    entry.history.add(window if recorder else RoutingStatistics(window.load))
    in_force = entry.in_force(placed)
    message = propose(entry, in_force, rebalancer.config)[1]
    entry.plan = in_force if message is KEEP else accept(message, in_force)
    placed = entry.plan.placement
    if rebalancer.renews(entry):
        entry.plan = accept(propose_weights(entry, entry.plan, rebalancer.config)[1], entry.plan)
print(len(known), sorted(compiled() - known))
"""
PRICE = "{'price': {'link_gbps': 100, 'seconds_per_selection': 1e-6}}"


@pytest.mark.parametrize(
    ("policy", "rule", "settings"),
    [
        ("balanced", "hash", "{}"),
        ("balanced", "weighted", "{}"),
        ("affinity", "hash", "{'effort': 'fast'}"),
        ("affinity", "nearest", "{'budget': {'max_moved_slots': 6}}"),
        ("affinity", "weighted", PRICE[:-1] + ", 'exact': {}}"),
        ("affinity", "cover", "{'budget': {'max_moved_slots_total': 9}}"),
        ("affinity", "cover", "{'effort': 'fast', 'peo': {'num_rounds': 5}}"),
    ],
)
def test_no_rebalance_compiles_anything(policy: str, rule: str, settings: str) -> None:
    paths = os.pathsep.join([*map(str, Path(__file__).parents[1:3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", CODE, policy, rule, settings],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    number, later = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert int(number) > 0
    assert later == "[]"
