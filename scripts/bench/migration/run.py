"""`scripts/bench_migration`: run all arms on all rows in turn, show tables, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.worker import ONE_THREAD, Worker
from eplb_plugin import Topology
from eplb_plugin.migration.schedule import schedule

from .rows import NODES, RANKS, ROWS, Row

ROOT = Path(__file__).resolve().parents[3]
PAIRS = {"vanilla's plan": ("old", "vanilla"), "the plugin's plan": ("old", "own")}
ENVIRONMENT = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}


def measure(row: Row, workers: list[Worker], repeats: int, folder: Path) -> dict[str, Any]:
    """{pair: {arm: figures}}; arms take turns, there and back, so that a busy machine is busy for all of them."""
    ready: dict[str, Worker] = {}
    found: dict[str, Any] = {pair: {} for pair in PAIRS}
    for worker in workers:
        answer: dict[str, Any] = (
            {"error": worker.error} if worker.error else worker.ask(row=row.name, folder=str(folder))
        )
        if "error" in answer:
            for pair in PAIRS:
                found[pair][worker.name] = answer
        else:
            ready |= dict.fromkeys(answer["arms"], worker)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(repeats + 1):  # the first is not counted: connections are made, memory is touched
        for arm, worker in ready.items():
            for pair, (one, other) in PAIRS.items():
                for names in ((one, other), (other, one)):
                    answer = worker.ask(run=arm, pair=names, plan=False)
                    planned = worker.ask(run=arm, pair=names, plan=True)
                    for problem in (answer, planned):
                        if "error" in problem:
                            raise SystemExit(f"bench_migration: {arm}: {problem['error']}")
                    if turn:
                        runs.setdefault((pair, arm), []).append(figures(answer["ranks"], planned["ranks"]))
    for (pair, arm), ones in runs.items():
        found[pair][arm] = {name: median(one[name] for one in ones) for name in ones[0]}
    return found


def figures(ranks: list[dict[str, Any]], planned: list[dict[str, Any]]) -> dict[str, float]:
    """Of one migration: the slowest rank counts."""
    steps = [np.array(rank["steps"]) * 1e3 for rank in ranks]
    return {
        "plan_ms": 1e3 * max(one["seconds"] for one in planned),
        "total_ms": 1e3 * max(rank["total"] for rank in ranks),
        "longest_stall_ms": float(max(one.max() for one in steps)),
        "p99_stall_ms": float(max(np.percentile(one, 99) for one in steps)),
        "held_up_ms": float(max(one.sum() for one in steps)),
        "staging_mib": max(rank["staging"] for rank in ranks) / 2**20,
        "maps_mib": max(rank["maps"] for rank in ranks) / 2**20,
    }


def traffic(row: Row, folder: Path) -> dict[str, dict[str, float]]:
    """{pair: MiB between ranks and between nodes}, by the plugin's schedule and as vLLM sends it: no word of nodes."""
    placed = np.load(folder / "placements.npz")
    topology = Topology(NODES, RANKS // NODES, row.slots_per_rank)
    size = sum(np.dtype("u1").itemsize * _bytes(kind, shape) for kind, shape in row.tensors.values())
    found = {}
    for pair, (one, other) in PAIRS.items():
        old, new = placed[one], placed[other]
        plan = schedule(old, new, topology)
        ranks, nodes = plan.rank_traffic(size), plan.node_traffic(size)
        found[pair] = {
            "moved_slots": float((old != new).mean()),
            "between_ranks_mib": float(ranks.sum() - np.trace(ranks)) / 2**20,
            "between_nodes_mib": float(nodes.sum() - np.trace(nodes)) / 2**20,
        }
    return found


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * {"int8": 1, "bfloat16": 2, "float32": 4}[kind]


def parts() -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.migration.parts"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **ONE_THREAD}, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def show(title: str, arms: dict[str, Any], console: Console) -> None:
    table = Table(title=title)
    columns = ("plan", "total", "longest stall", "P99 stall", "held up", "staging MiB", "maps MiB")
    for name in ("ms", *columns):
        table.add_column(name, justify="left" if name == "ms" else "right")
    for arm, one in arms.items():
        if "error" in one:
            table.add_row(arm, one["error"])
        else:
            table.add_row(arm, *(f"{value:.2f}" for value in one.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_migration", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--repeats", type=int, default=5, help="turns per row and arm, there and back; medians count")
    parser.add_argument("--row", choices=list(ROWS), help="this row only")
    parser.add_argument("--sglang-python", type=Path, default=ROOT / ".venv-sglang" / "bin" / "python")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench_migration.json", help="where results go")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    pythons = {"vllm": Path(sys.executable), "sglang": options.sglang_python}
    workers = [Worker(python, "bench.migration.worker", engine, ENVIRONMENT) for engine, python in pythons.items()]
    began, results = time.monotonic(), []
    for row in ROWS.values():
        if options.row in (None, row.name):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                found = measure(row, workers, 1 if options.quick else options.repeats, folder)
                moved = traffic(row, folder)
            for pair, arms in found.items():
                sizes = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in moved[pair].items())
                show(f"{row.name}; {pair}: {sizes}", arms, console)
            results.append({"row": row.name, "traffic": moved, "pairs": found})
            console.print(f"[dim]{time.monotonic() - began:4.0f} s[/]", highlight=False)
    for worker in workers:
        worker.close()
    single = parts()
    table = Table(
        "part", "what", "ms, or as named", title="Parts: 58 layers x 256 experts -> 288 slots, 32 ranks, one thread"
    )
    for part, figures_of in single.items():
        for what, value in figures_of.items():
            table.add_row(part, what, f"{value:.2f}")
    console.print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"rows": results, "parts": single}, indent=1) + "\n")
    console.print(f"Written: {options.json}", highlight=False)


if __name__ == "__main__":
    main()
