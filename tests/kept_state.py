"""What the tests of both engines ask of a server that keeps its state: recording it, and starting another from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from eplb_plugin import Placement
from eplb_plugin.bench.engine import Completion
from eplb_plugin.bench.server import Server
from eplb_plugin.files import load_arrays
from eplb_plugin.observe.metrics import NAMES
from eplb_plugin.observe.watching import readings
from eplb_plugin.placement import linear_placement
from eplb_plugin.statistics import RoutingStatistics
from serving.greedy import complete_all, largest_difference

# what moves nothing after the first placement, and records all the same
STILL = "budget: {max_moved_slots_total: 0}\n"
PER_RANK = "metrics: {per_layer_rank: true}\n"


def rebalances(server: Server) -> int:
    return len(re.findall(r"slots move", server.text()))


def serve_until(server: Server, count: int, expected: list[Completion]) -> None:
    """Correct output over `count` rebalances."""
    for _ in range(60):
        assert largest_difference(expected, complete_all(server)) < 1e-4
        if rebalances(server) >= count:
            return
    raise AssertionError(f"only {rebalances(server)} rebalances")


def record(server: Server, out: Path, *words: object) -> dict[str, Any]:
    """`eplb-plugin record OUT WORDS --seconds 12 --json`, while the server serves."""
    program = [sys.executable, "-c", "from eplb_plugin.cli import app; app()", "record", str(out), *map(str, words)]
    process = subprocess.Popen(
        [*program, "--seconds", "12", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            complete_all(server)
        answer, problem = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, problem
    return json.loads(answer)


def kept(folder: Path) -> tuple[Placement, float]:
    """The one placement in the folder, and when it was written."""
    (path,) = folder.glob("*.mixed.placement.safetensors")
    assert load_arrays(path, "placement")[1]["model"]
    return Placement.load(path), path.stat().st_mtime


def begins_where_it_ended(server: Server, folder: Path, expected: list[Completion]) -> None:
    """`server` was started with STILL on what another has left in `folder`: its experts lie so, and serve correctly."""
    before, written = kept(folder)
    linear = linear_placement(before.num_layers, before.num_experts, before.num_slots, before.layer_ids)
    assert before.moves_from(linear).any(), "the test could not tell it from the engine's own start"
    server.wait_ready()
    assert f"begins with the placement of {folder}" in server.text()
    serve_until(server, 3, expected)
    deadline = time.monotonic() + 30
    while kept(folder)[1] == written:
        assert time.monotonic() < deadline, "what serves now was not kept"
        time.sleep(0.1)
    np.testing.assert_array_equal(kept(folder)[0].phy2log, before.phy2log)


def holds_single_steps(window: RoutingStatistics) -> None:
    """Some of the steps of all ranks together, each whole: every layer routes the same tokens."""
    assert window.steps is not None
    assert (window.steps.sum(axis=0) <= window.load).all()
    selections = window.steps.sum(axis=2)
    assert selections.all()
    assert (selections == selections[:, :1]).all()


def shows_every_metric(server: Server) -> str:
    """Its /metrics, which have every name that the dashboard asks for, and which `watch` can read."""
    text = metrics_of(server)
    shown = {name for name in NAMES if re.search(rf"^{name}{{", text, re.MULTILINE)}
    assert shown == NAMES, f"not shown: {NAMES - shown}"
    (reading,) = readings(text).values()
    assert reading.rebalances["accepted"] > 0
    assert reading.balancedness is not None
    assert reading.stages["plan"] > 0
    return text


def metrics_of(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        return answer.read().decode()
