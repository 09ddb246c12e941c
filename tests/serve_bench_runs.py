"""The serving benchmark's own command in the test bed, as a user runs it: for the tests of either engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from eplb_plugin.observe.bench_results import Run, read_runs

ROOT = Path(__file__).resolve().parents[1]
Answer = tuple[int, str, str]  # exit code, what was printed, and the errors


def run_serve_bench(engine: str, out: Path, arms: list[str], *words: str) -> tuple[str, dict[str, list[Run]], Any]:
    """What it printed, the arms' results as `eplb-plugin compare` reads them, and settings.json; fails if it does."""
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench.serving.on_cpu", "--cpu", "--engine", engine, "--arms", ",".join(arms)]
    command += ["--concurrency", "2,4", "--prompts", "8", "--warmup", "4", "--out", str(out), *words]
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(out) not in left  # of the servers, all of which have the model's folder in their arguments
    return done.stdout, {arm: read_runs(out / arm) for arm in arms}, json.loads((out / "settings.json").read_text())


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path
