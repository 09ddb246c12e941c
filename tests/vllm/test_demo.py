"""The main job from its command line: it ends with a table and JSON, and never leaves a server behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from eplb_plugin.settings.config import load_config

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "demo" / "vllm"


def start_demo(*arguments: str) -> subprocess.Popen[str]:
    command = [str(ROOT / "scripts" / "demo"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def servers() -> list[int]:
    """Processes that serve the demo's model."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if process.name.isdigit() and f"serve {OUT / 'model'}" in command:
            found.append(int(process.name))
    return found


def test_ctrl_c_stops_the_servers() -> None:
    """Interrupted while a server starts, the demo says so and leaves no process."""
    demo = start_demo("--arms", "affinity")
    try:
        deadline = time.monotonic() + 120
        while not servers():
            assert demo.poll() is None, demo.stdout and demo.stdout.read()
            assert time.monotonic() < deadline, "no server was started"
            time.sleep(1)
        time.sleep(10)
        launcher = servers()[0]
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
        left = servers()
        for process in left:  # nothing of a failed test may slow the others down
            os.killpg(os.getpgid(process), signal.SIGKILL)
    assert demo.returncode == 130
    assert "interrupted; all servers are stopped" in output
    assert left == []
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher, 0)  # the launcher led the group of all its children


@pytest.mark.full
def test_the_demo_ends_with_a_table_and_json() -> None:
    """All four arms, a short load: equal output, and fewer crossings and moves than vanilla."""
    demo = start_demo("--requests", "96")
    output, _ = demo.communicate(timeout=1500)
    assert demo.returncode == 0, output
    assert "cross-node copies / token" in output
    arms = {arm["arm"]: arm for arm in json.loads((OUT / "results.json").read_text())["arms"]}
    assert list(arms) == ["none", "vanilla_sync", "vanilla", "affinity"]
    assert arms["affinity"]["copies_per_token"] < arms["vanilla"]["copies_per_token"]
    assert 0 < arms["affinity"]["slots_moved"] < arms["vanilla"]["slots_moved"]
    assert arms["vanilla"]["rebalances"] > 0
    assert "advice: " in output
    assert load_config(OUT / "eplb.yaml").topology_for(2, 1).num_nodes == 2
    assert "Plotly" in (OUT / "report.html").read_text()
