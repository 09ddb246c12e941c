"""The doctor on several ranks, under a real torchrun, on CPUs over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def torchrun(ranks: int, file: Path, *fault: str) -> tuple[int, str, str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone",
        str(ROOT / "tests" / "doctor_ranks.py"), str(file), *fault,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_ranks_that_work_pass(tmp_path: Path) -> None:
    """One table and one file, of rank 0; the first message of a fresh group is between two ranks of three."""
    code, out, err = torchrun(3, tmp_path / "report.json")
    assert code == 0, err
    report = read(tmp_path / "report.json")
    assert {one["name"]: one["status"] for one in report["checks"]} == {
        "moves": "ok", "votes": "ok", "windows": "ok", "wait costs": "skipped", "memory": "skipped"
    }  # fmt: skip
    assert report["not run"] == []
    assert report["checks"][0]["figures"]["steps, gloo"] > 0
    assert out.count("doctor on 3 ranks") == 1
    assert err.count("ok votes") == 1


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [("byte", "moves", "weights read by the forward pass: found "), ("window", "windows", "no route to host")],
)
def test_one_ranks_failure_ends_all_with_one_line(tmp_path: Path, fault: str, check: str, said: str) -> None:
    """Others may wait for it in a collective; the line and the file say which rank, which check and what."""
    code, _, err = torchrun(2, tmp_path / "report.json", fault)
    assert code == 1
    failed = read(tmp_path / "report.json")["checks"][-1]
    assert (failed["name"], failed["status"]) == (check, "failed")
    assert failed["detail"].startswith("rank 1: ")
    assert said in failed["detail"]
    assert failed["trace"]
    lines = [line for line in err.splitlines() if line.startswith("eplb-plugin: ")]
    assert lines == [f"eplb-plugin: {check}: {failed['detail']}"]


def test_ranks_of_different_releases_are_refused(tmp_path: Path) -> None:
    """Before any check: what would follow from it is not worth a report."""
    code, _, err = torchrun(2, tmp_path / "report.json", "release")
    assert code == 1
    assert "eplb_plugin of rank 1: found 0.0.1, expected " in err
