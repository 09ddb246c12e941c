"""The main job from its command line, with SGLang."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from eplb_plugin.settings.config import load_config

pytestmark = [pytest.mark.server, pytest.mark.full]

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_ends_with_a_table_and_json() -> None:
    """All three arms, a short load: equal output, and fewer crossings and moves than vanilla."""
    command = [str(ROOT / "scripts" / "demo"), "--engine", "sglang", "--requests", "96"]
    demo = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    assert demo.returncode == 0, demo.stdout
    assert "cross-node copies / token" in demo.stdout
    results = json.loads((ROOT / "out" / "demo" / "sglang" / "results.json").read_text())
    arms = {arm["arm"]: arm for arm in results["arms"]}
    assert list(arms) == ["none", "vanilla", "affinity"]
    assert arms["affinity"]["copies_per_token"] < arms["vanilla"]["copies_per_token"]
    assert 0 < arms["affinity"]["slots_moved"] < arms["vanilla"]["slots_moved"]
    assert arms["vanilla"]["rebalances"] > 0
    assert "advice: " in demo.stdout
    assert load_config(ROOT / "out" / "demo" / "sglang" / "eplb.yaml").topology_for(2, 1).num_nodes == 2
    assert "Plotly" in (ROOT / "out" / "demo" / "sglang" / "report.html").read_text()
