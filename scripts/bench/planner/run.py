"""`scripts/bench_planner`: run all arms on all rows in turn, show tables, write JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.worker import ONE_THREAD, Worker
from eplb_plugin import Placement, Topology
from eplb_plugin.planning.score import balancedness, moved_slots

from .arms import ARMS, ROOT
from .rows import REAL_NOISE, Row, chosen, noisy

OUR = ARMS[0]
ALONE = ("scale", "affinity")  # kinds whose rows have a process of their own


def started(arm: str, environment: dict[str, str]) -> Worker:
    return Worker(Path(sys.executable), "bench.planner.worker", arm, environment)


def measure(row: Row, workers: list[Worker], repeats: int, folder: Path) -> dict[str, Any]:
    """{arm: figures} of one row; arms take turns, so that a busy machine is busy for all of them."""
    figures: dict[str, Any] = {}
    for worker in workers:
        if worker.error:
            figures[worker.name] = {"error": worker.error}
            continue
        file = folder / "placement.npz"
        answer = worker.ask(row=asdict(row), file=str(file))
        figures[worker.name] = answer if "error" in answer else {**answer, "seconds": [], **judge(row, file)}
    for _ in range(repeats):
        for worker in workers:
            if "error" not in figures[worker.name]:
                figures[worker.name]["seconds"] += worker.ask(again=1 if row.rule else 3)["seconds"]
    for one in figures.values():
        if "seconds" in one:
            one["cpu_ms"] = 1e3 * median(one.pop("seconds"))
    return figures


def judge(row: Row, file: Path) -> dict[str, float]:
    """Balance if every copy serves the same share, in sample and on a noisy next window; share of moved slots."""
    saved = np.load(file)
    placement, load = Placement(saved["placement"]), row.load()
    topology = Topology(row.nodes, row.ranks // row.nodes, row.slots_per_rank)
    moved = moved_slots(placement, Placement(saved["previous"]), topology).sum()
    windows = {"in_sample": load, "held_out": noisy(load, REAL_NOISE, seed=7)}
    return {name: _balance(window, placement, row) for name, window in windows.items()} | {
        "moved": float(moved / placement.phy2log.size)
    }


def _balance(load: Any, placement: Placement, row: Row) -> float:
    per_slot = np.take_along_axis(load / placement.replica_count, placement.phy2log.astype(np.int64), axis=1)
    return balancedness(per_slot.reshape(len(load), row.ranks, -1).sum(axis=2))


def compile_seconds(folder: Path) -> dict[str, float]:
    """CPU time of the first plan where nothing is cached: {what: seconds}, full and incremental balanced solves."""
    worker = started(OUR, {**ONE_THREAD, "NUMBA_CACHE_DIR": str(folder / "cache")})
    full, drift = (Row("compile", 2, 16, 1, 4, 5, drift=sigma) for sigma in (0.0, 0.2))
    try:
        return {
            "full": worker.ask(row=asdict(full), file=str(folder / "placement.npz"))["first"],
            "incremental, further": worker.ask(row=asdict(drift), file=str(folder / "placement.npz"))["first"],
        }
    finally:
        worker.close()


def show(kind: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(
        title={
            "full": "From scratch",
            "drift": "From an old placement",
            "served": "The whole of what a server does: ours forecasts from 8 windows first, peers take the newest",
            "scale": "Scale",
            "affinity": "Policy affinity, a few layers: the cost of a model is that of a layer times its layers",
        }[kind]
    )
    for name in ("", "", "CPU ms", "x ours", "in sample", "held out", "moved", "MiB"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        for arm, one in row["arms"].items():
            title = row["title"] if arm == OUR else ""
            if "error" in one:
                table.add_row(title, arm, one["error"])
                continue
            ours = row["arms"][OUR].get("cpu_ms", float("nan"))
            moved = f"{one['moved']:.1%}" if kind in ("drift", "served") else "-"
            memory = f"{one['memory']:.0f}" if kind in ALONE else "-"
            if row["rule"]:
                layer = one["cpu_ms"] / row["layers"]
                table.add_row(title, arm, f"{layer:.0f} a layer", "-", "-", "-", "-", memory)
                continue
            figures = (f"{one['cpu_ms']:.2f}", f"{one['cpu_ms'] / ours:.1f}")
            table.add_row(title, arm, *figures, f"{one['in_sample']:.4f}", f"{one['held_out']:.4f}", moved, memory)
        table.add_section()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_planner", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one row of each kind")
    parser.add_argument(
        "--repeats", type=int, default=9, help="turns per row and arm, of three plans; the median counts"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench_planner.json", help="where results go")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compiled = compile_seconds(folder)
        workers = [started(arm, ONE_THREAD) for arm in ARMS]
        for row in chosen(options.quick):
            console.print(f"[dim]{time.monotonic() - began:4.0f} s[/]  {row.title}", highlight=False)
            if row.kind in ALONE:  # peak memory only grows: a process of its own for every row
                for worker in workers:
                    worker.close()
                workers = [started(arm, ONE_THREAD) for arm in (ARMS[:1] if row.rule else ARMS)]
            repeats = 1 if row.kind in ALONE else options.repeats
            rows.append({"title": row.title, **asdict(row), "arms": measure(row, workers, repeats, folder)})
        for worker in workers:
            worker.close()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        show(kind, [row for row in rows if row["kind"] == kind], console)
    console.print("CPU time of one thread, median. Kernels compiled once, apart: ", compiled)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"compile_cpu_seconds": compiled, "rows": rows}, indent=1) + "\n")
    console.print(f"Written: {options.json}", highlight=False)


if __name__ == "__main__":
    main()
