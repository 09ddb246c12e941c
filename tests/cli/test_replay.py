"""`eplb-plugin replay`: figures of a file or of a plan, and one line for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli_files import CLUSTER, FIGURES, ROUTER, TOPOLOGY, Answer, refused
from eplb_plugin import RoutingStatistics, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import judge


@pytest.mark.parametrize("dispatch", ["hash", "nearest"])
def test_replay_of_a_file_is_judge(call: Callable[..., Answer], files: Path, dispatch: str) -> None:
    """The figures are score.judge's, mean over the source draws."""
    placement = linear_placement(2, 32, 40)
    placement.save(files / "placement.safetensors")
    saved = files / "placement.safetensors"
    words = ("replay", files / "trace.npz", *CLUSTER, "--dispatch", dispatch, "--placement", saved)
    code, out, err = call(*words, "--draws", 2, "--json", "--per-layer")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    rows, made = ROUTER.window(600, 0), plan_of(placement, TOPOLOGY, dispatch)
    sources = [np.random.default_rng([0, draw]).integers(0, 4, 600) for draw in range(2)]
    scores = [judge(rows, source, made) for source in sources]
    for name in FIGURES:
        expected = np.mean([getattr(score, name) for score in scores])
        assert answer["mean"][name] == pytest.approx(expected)
        assert np.mean([layer[name] for layer in answer["layers"]]) == pytest.approx(expected)
    assert answer["held_out"] is False
    assert [layer["layer"] for layer in answer["layers"]] == [0, 1]


@pytest.mark.parametrize("trace", ["trace.npz", "window.safetensors"])
def test_replay_plans_on_one_half_and_judges_on_the_other(call: Callable[..., Answer], files: Path, trace: str) -> None:
    """Both ways round, and better than the engines' own policy where tokens have topics."""
    found = {}
    for policy in ("affinity", "deepseek"):
        code, out, err = call("replay", files / trace, *CLUSTER, "--policy", policy, "--json")
        assert (code, err) == (0, "")
        found[policy] = json.loads(out)
        assert found[policy]["held_out"] is True
        assert len(found[policy]["runs"]) == 2
        assert found[policy]["mean"].keys() == FIGURES
    rows = ROUTER.window(600, 0)
    made = plan(RoutingStatistics.from_topk(rows[:, :300], 32), TOPOLOGY)
    score = np.mean([
        judge(rows[:, 300:], np.random.default_rng([0, d]).integers(0, 4, 300), made).balancedness for d in range(3)
    ])  # fmt: skip
    assert found["affinity"]["runs"][0]["balancedness"] == pytest.approx(score)
    assert found["affinity"]["mean"]["cross_node_copies"] < 0.9 * found["deepseek"]["mean"]["cross_node_copies"]


def test_replay_prints_a_table(call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = call("replay", files / "window.safetensors", *CLUSTER, "--per-layer")
    assert (code, err) == (0, "")
    for word in (
        "policy affinity under weighted",
        "first half → second",
        "copies: to other nodes, per token",
        "4     0.",
    ):
        assert word in out


def test_replay_refuses(call: Callable[..., Answer], files: Path) -> None:
    """Another model's placement, another cluster's, unknown names, contradictions, a trace without tokens."""
    linear_placement(2, 32, 40).save(files / "fits.safetensors")
    linear_placement(3, 32, 40).save(files / "layers.safetensors")
    linear_placement(2, 16, 40).save(files / "experts.safetensors")
    linear_placement(2, 32, 36).save(files / "slots.safetensors")
    RoutingStatistics(np.ones((2, 32))).save(files / "load.safetensors")
    np.savez(files / "one.npz", topk_ids=[[[0, 1]]])
    trace, window = files / "trace.npz", files / "window.safetensors"

    def replay(trace: Path, *words: object) -> Answer:
        return call("replay", trace, *CLUSTER, *words)

    refused(replay(trace, "--placement", files / "layers.safetensors"), "trace.npz: found layers [0, 1] × 32 experts")
    refused(replay(trace, "--placement", files / "experts.safetensors"), "experts: found 32, expected 16")
    refused(replay(trace, "--placement", files / "slots.safetensors"), "placement slots: found 36, expected 40")
    refused(replay(window, "--placement", files / "fits.safetensors"), "window.safetensors: found layers [3, 4]")
    refused(replay(trace, "--placement", window), "found statistics v1, expected placement v1")
    refused(replay(trace, "--placement", files / "fits.safetensors", "--policy", "balanced"), "both --placement and")
    refused(replay(trace, "--policy", "best"), "policy: found 'best'")
    refused(replay(trace, "--dispatch", "random"), "dispatch: found 'random'")
    refused(replay(trace, "--rule=random"), "dispatch: found 'random'")
    refused(replay(trace, "--num-groups", 5), "num_groups: found 5")
    refused(replay(files / "load.safetensors"), "load.safetensors: token rows: found 0, expected at least 2")
    refused(replay(files / "one.npz"), "one.npz: token rows: found 1")
    refused(call("replay", trace, "--nodes", 0, *CLUSTER[2:]), "topology.num_nodes: found 0")
    refused(call("replay", trace, *CLUSTER[:4], "--slots-per-rank", 7), "topology.num_slots: found 28")


def test_an_empty_layer_and_padding(call: Callable[..., Answer], tmp_path: Path) -> None:
    """A layer without tokens counts as balanced, and nothing divides by zero."""
    rows = ROUTER.window(50, 0).astype(int)
    rows[1] = -1
    rows[0, ::2] = -1
    np.savez(tmp_path / "trace.npz", topk_ids=rows, num_experts=32)
    code, out, err = call("replay", tmp_path / "trace.npz", *CLUSTER, "--json", "--per-layer")
    assert (code, err) == (0, "")
    assert json.loads(out)["layers"][1] == {
        "layer": 1, "balancedness": 1.0, "node_fan_out": 0.0, "cross_node_copies": 0.0, "busiest_ingress": 1.0,
    }  # fmt: skip


def test_the_console_script(files: Path) -> None:
    """The real entry: JSON on stdout and nothing else; on stderr at most that kernels are compiled."""
    command = [sys.executable, "-c", "from eplb_plugin.cli import app; app()", "replay", str(files / "trace.npz")]
    done = subprocess.run(
        [*command, *map(str, CLUSTER), "--policy", "balanced", "--json"], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("compiling the planner")]
    assert (done.returncode, said) == (0, [])
    assert json.loads(done.stdout)["mean"].keys() == FIGURES
