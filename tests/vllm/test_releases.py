"""Other releases of vLLM than the one that all tests run on: the same output over many rebalances, in real servers."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from vllm_releases import RELEASES, overlay

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
TODAY = date.today().toordinal() % len(RELEASES)  # one a day in CI, in turn


@pytest.mark.parametrize(
    "release",
    [pytest.param(one, marks=() if turn == TODAY else pytest.mark.full) for turn, one in enumerate(RELEASES)],
)
def test_output_is_unchanged_on_another_release(release: str, tmp_path: Path) -> None:
    """TP2 in step and DP2 in the background: all promises of the output tests, and no word of an untested release."""
    folder = overlay(release)
    paths = [str(folder), str(ROOT), str(ROOT / "patches/cpu_engines"), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths)), "PYTEST_ADDOPTS": ""}
    cases = ["-k", "tp2-sync-v1 or dp2-async-v1", "--basetemp", str(tmp_path / "servers")]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "tests/vllm/test_output.py", *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "2 passed" in done.stdout
    logs = "".join(path.read_text() for path in (tmp_path / "servers").rglob("server.log"))
    assert f"vLLM API server version {release}" in logs or f"version {release}" in logs
    assert "is untested" not in logs
