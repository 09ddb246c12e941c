"""The balancers under test, each as one function (load [L, E], previous phy2log or None) -> phy2log [L, P]."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Row

ROOT = Path(__file__).resolve().parents[3]
SGLANG = "sglang==0.5.23"
PEERS = ROOT / ".peers" / SGLANG.replace("==", "-")
ARMS = ("eplb_plugin", "vllm", "sglang deepseek", "sglang deepseek_vec")
Solve = Callable[[Any, Any], Any]


def open_arm(arm: str) -> Callable[[Row], Solve]:
    """Import what the arm needs; raises whatever makes that impossible."""
    if arm == "eplb_plugin":
        return _plugin
    import torch

    torch.set_num_threads(1)
    return _vllm() if arm == "vllm" else _sglang(arm.split()[1])


def _plugin(row: Row) -> Solve:
    from eplb_plugin import Placement, RoutingStatistics, Topology, forecast, plan

    topology = Topology(row.nodes, row.ranks // row.nodes, row.slots_per_rank)
    if rule := row.rule:
        statistics = RoutingStatistics.from_topk(row.tokens(), row.experts)
        return lambda load, previous: plan(statistics, topology, dispatch=rule).placement.phy2log

    history = row.history() if row.windows else []

    def solve(load: Any, previous: Any) -> Any:
        start = None if previous is None else Placement(previous)
        statistics = forecast(history, pairs=False) if history else RoutingStatistics(load)  # as `proposal.py` does
        made = plan(statistics, topology, policy="balanced", dispatch="hash", previous=start)
        return made.placement.phy2log

    return solve


def _vllm() -> Callable[[Row], Solve]:
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    def open_row(row: Row) -> Solve:
        def solve(load: Any, previous: Any) -> Any:
            old = None if previous is None else torch.from_numpy(previous.astype(np.int64))
            return DefaultEplbPolicy.rebalance_experts(
                torch.from_numpy(load), row.slots, row.groups, row.nodes, row.ranks, old
            ).numpy()

        return solve

    return open_row


def _sglang(algorithm: str) -> Callable[[Row], Solve]:
    """Only the folder of its algorithms: the rest of the package would need a GPU build of everything."""
    import importlib

    import torch

    install_sglang()
    for name in ("sglang", "sglang.srt", "sglang.srt.eplb", "sglang.srt.eplb.eplb_algorithms"):
        package = types.ModuleType(name)
        package.__path__ = [str(PEERS.joinpath(*name.split(".")))]
        sys.modules[name] = package
    module = importlib.import_module(f"sglang.srt.eplb.eplb_algorithms.{algorithm}")

    def open_row(row: Row) -> Solve:
        hierarchical = row.groups % row.nodes == 0  # what its `auto` chooses

        def solve(load: Any, previous: Any) -> Any:
            weight = torch.from_numpy(load)
            if algorithm == "deepseek":
                maps = module.rebalance_experts(weight, row.slots, row.groups, row.nodes, row.ranks, hierarchical)
            else:
                maps = module.rebalance_experts(
                    weight[None], row.slots, row.slots_per_rank, row.groups, row.nodes, hierarchical
                )
            return maps[0].numpy()

        return solve

    return open_row


def install_sglang() -> None:
    """Unpack the pip package, without what it depends on, into a folder that git ignores."""
    marker = PEERS / "sglang" / "srt" / "eplb" / "eplb_algorithms" / "deepseek.py"
    if marker.exists():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*pip, "--target", str(PEERS), SGLANG], capture_output=True, text=True, env=clean)
    if not marker.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise RuntimeError(f"{SGLANG} cannot be installed: {lines[-1]}")
