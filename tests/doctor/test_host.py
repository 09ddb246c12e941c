"""The whole doctor on a CPU, with the kernels in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")


def test_all_checks_of_one_device(tmp_path: Path) -> None:
    """Those that a CPU can show pass, the others say why not; a fault in kernels or operators is seen."""
    command = [sys.executable, str(ROOT / "tests" / "doctor_host.py"), str(tmp_path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {one["name"]: one["detail"] for one in report["checks"] if one["status"] == "skipped"} == {
        "waits": "nobody waits for a cpu",
        "wait costs": "needs NCCL",
        "memory": "the memory of a cpu is not counted",
        "captures": "no graph is captured on a cpu",
    }
    ok = {one["name"]: one["figures"] for one in report["checks"] if one["status"] == "ok"}
    assert set(ok) == {"rows", "moves", "kernel", "replays", "windows", "times", "operators"}
    assert ok["kernel"] == {"cases": 3, "tasks": 4}
    assert all(value > 0 for value in ok["times"].values())
    assert report["not run"] == []
    assert "eplb-plugin doctor --gpu: no GPU" in done.stdout
    assert done.stderr.count("… ") == len(report["checks"])
    faults = json.loads((tmp_path / "faults.json").read_text())
    expected = {
        "counted_twice": ": load of the pass, layer 0: found ",
        "mapped_elsewhere": "slots of the kernel that only maps: found ",
        "announced_wrong": "counts",
    }
    for name, said in expected.items():
        status, detail = faults[name]
        assert (status, said in detail) == ("failed", True), f"{name}: {status}, {detail}"
