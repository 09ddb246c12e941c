"""The soak's view of a server's processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.serving.processes import Process, grown, growth, of_session, ranks, stopped

MIB = float(1 << 20)


def state(pid: int) -> str:
    stat = Path("/proc", str(pid), "stat").read_text()
    return stat[stat.rindex(")") + 2]


def test_a_session_is_found_stopped_and_continued() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    leader = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while len(found := of_session(leader.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found[0].pid == leader.pid
        assert len(found) == 2
        assert all((one.memory() or 0) > MIB for one in found)
        with stopped(found[1]):
            while state(found[1].pid) != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert state(found[1].pid) == "T"
        while state(found[1].pid) == "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(found[1].pid) != "T"
    finally:
        for one in of_session(leader.pid):
            subprocess.run(["kill", "-9", str(one.pid)], check=False)
        leader.wait()
    assert Process(leader.pid, "gone").memory() is None


def test_ranks_are_the_workers() -> None:
    names = ["VLLM::EngineCore_DP0", "VLLM::Worker_DP0_EP0", "VLLM::Worker_DP1_EP1", "python -m serving.together"]
    assert [one.pid for one in ranks([Process(pid, name) for pid, name in enumerate(names)])] == [1, 2]


def test_growth_is_told_from_warming_up_and_from_noise() -> None:
    rng = np.random.default_rng(0)
    base = 1000 * MIB + rng.normal(0, 5 * MIB, 80)
    warming = base - 500 * MIB * np.exp(-np.arange(80) / 3)
    leaking = base + np.arange(80) * 3 * MIB
    assert growth(leaking) == pytest.approx(120 * MIB, rel=0.1)
    assert grown({"steady": base, "warming": warming, "leaking": leaking, "short": [1.0, 2e9]}) == ["leaking"]
