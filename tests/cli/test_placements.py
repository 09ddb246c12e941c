"""`eplb-plugin plan` and `eplb-plugin replay`: what they print and write, and one line for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from eplb_plugin import Placement, PlanOptions, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Effort
from eplb_plugin.planning.job import plan_of
from eplb_plugin.planning.score import judge
from eplb_plugin.workloads.routing import ClusteredRouter
from eplb_plugin.workloads.trace import read_window

Answer = tuple[int, str, str]
ROUTER = ClusteredRouter(2, 32, 4, num_topics=4, purity=0.8, strength=3.0, skew=0.7)
CLUSTER = ("--nodes", 2, "--ranks-per-node", 2, "--slots-per-rank", 10)
TOPOLOGY = Topology(2, 2, 10)
FIGURES = {"balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress"}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """trace.npz and window.safetensors with the same tokens, later.npz with others."""
    np.savez(tmp_path / "trace.npz", topk_ids=ROUTER.window(600, 0), num_experts=32)
    np.savez(tmp_path / "later.npz", topk_ids=ROUTER.window(600, 1), num_experts=32)
    RoutingStatistics.from_topk(ROUTER.window(600, 0), 32, [3, 4]).save(tmp_path / "window.safetensors")
    return tmp_path


def refused(answer: Answer, *parts: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("eplb-plugin: ")
    for part in parts:
        assert part in err


# replay


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
    for word in ("policy affinity under weighted", "first half → second", "cross-node copies per token", "│ 4 "):
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


# plan


def test_plan_writes_the_plan(call: Callable[..., Answer], files: Path) -> None:
    """The file is plan()'s placement; the score before is the engines' start, after is better."""
    out_file = files / "made" / "placement.safetensors"
    code, out, err = call("plan", files / "window.safetensors", *CLUSTER, "--out", out_file, "--json")
    assert (code, err) == (0, "")
    answer, written = json.loads(out), Placement.load(out_file)
    expected = plan(RoutingStatistics.from_topk(ROUTER.window(600, 0), 32, [3, 4]), TOPOLOGY)
    assert np.array_equal(written.phy2log, expected.placement.phy2log)
    assert written.layer_ids.tolist() == [3, 4]
    assert answer["after"]["balancedness"] > answer["before"]["balancedness"]
    assert answer["after"]["cross_node_copies"] < answer["before"]["cross_node_copies"]
    assert (answer["windows"], answer["forecast_error"], answer["skipped_layers"]) == (1, None, 0)
    code, _, err = call("replay", files / "trace.npz", *CLUSTER, "--placement", out_file)
    assert (code, err) == (0, ""), "layer ids are the placement's where an .npz has none"


def test_plan_searches_as_long_as_told(call: Callable[..., Answer], files: Path) -> None:
    """--effort reaches plan(); any other word is refused before a file is written."""
    out = files / "made.safetensors"
    words = ("plan", files / "trace.npz", *CLUSTER, "--dispatch", "weighted", "--out", out, "--effort")
    statistics, written = RoutingStatistics.from_topk(ROUTER.window(600, 0), 32), {}
    refused(call(*words, "quick"), "effort: found 'quick', expected fast or thorough")
    assert not out.exists()
    for effort in get_args(Effort):
        code, _, err = call(*words, effort)
        assert (code, err) == (0, "")
        written[effort] = Placement.load(out).phy2log
        expected = plan(statistics, TOPOLOGY, options=PlanOptions(effort=effort))
        assert np.array_equal(written[effort], expected.placement.phy2log)
    assert not np.array_equal(written["fast"], written["thorough"])


def test_plan_from_a_placement_under_a_price(
    call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history, a placement in force, a bound, and a price that no layer pays."""
    monkeypatch.setenv("COLUMNS", "160")
    first, second = files / "first.safetensors", files / "second.safetensors"
    history = (files / "trace.npz", files / "later.npz")
    linear_placement(2, 32, 40).save(first)
    words = ("plan", *history, *CLUSTER, "--previous", first, "--out", second)
    code, out, err = call(*words, "--max-moved-slots", 5, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert 0 < answer["moved_slots"] <= 10
    assert 0.0 < answer["forecast_error"] < 0.5
    code, out, err = call(*words, "--expert-bytes", 1e9, "--link-gbps", 1, "--seconds-per-selection", 1e-9)
    assert (code, err) == (0, "")
    assert "0 of 80 slots moved, 2 layers kept because their move would not pay" in out
    assert np.array_equal(Placement.load(second).phy2log, Placement.load(first).phy2log)


def test_plan_without_tokens(call: Callable[..., Answer], files: Path) -> None:
    """From a load alone: policy balanced works, and what is not known is not printed as a figure."""
    RoutingStatistics(np.arange(64).reshape(2, 32)).save(files / "load.safetensors")
    words = ("plan", files / "load.safetensors", *CLUSTER, "--out", files / "made.safetensors")
    code, out, err = call(*words, "--policy", "balanced", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["after"].keys() == {"balancedness"}
    code, out, err = call(*words, "--policy", "balanced")
    assert (code, "–" in out, err) == (0, True, "")
    refused(call(*words), "policy affinity: found load only")


def test_plan_refuses(call: Callable[..., Answer], files: Path) -> None:
    """A half price, a placement of another model, windows of two models, a place where nothing can be written."""
    linear_placement(2, 16, 40).save(files / "other.safetensors")
    trace, out = files / "trace.npz", files / "made.safetensors"
    words = ("plan", trace, *CLUSTER, "--out", out)
    refused(call(*words, "--expert-bytes", 1e9), "price of a move: found expert_bytes")
    refused(call(*words, "--previous", files / "other.safetensors"), "trace.npz: experts: found 32, expected 16")
    refused(call(*words, "--previous", files / "missing.safetensors"), "cannot be read as a placement file")
    refused(call("plan", trace, files / "window.safetensors", *CLUSTER, "--out", out), "history: found layers")
    refused(call("plan", trace, *CLUSTER, "--out", files), "cannot be written")
    assert not out.exists()


@pytest.mark.parametrize("reader", ["sglang", "vllm-ascend", "tensorrt-llm"])
def test_a_map_of_another_program_is_the_placement_in_force(
    call: Callable[..., Answer], files: Path, reader: str
) -> None:
    """Exported and given as --previous, nothing moves that would not from our own file; replay has its figures."""
    own, other = files / "own.safetensors", files / ("map.yaml" if reader == "tensorrt-llm" else "map.json")
    rows = np.tile(np.random.default_rng(0).permutation(32)[np.arange(40) % 32], (2, 1))
    Placement(rows, np.array([3, 4])).save(own, {"num_ranks": 4})
    assert call("export", own, other, "--for", reader)[0] == 0
    words, found = (files / "window.safetensors", *CLUSTER, "--policy", "balanced"), []
    for previous in (own, other):
        code, out, err = call("plan", *words, "--out", files / "made.safetensors", "--previous", previous, "--json")
        assert (code, err) == (0, "")
        found.append({**json.loads(out), "seconds": 0.0})
        code, out, err = call("replay", files / "window.safetensors", *CLUSTER, "--placement", previous, "--json")
        found[-1]["replayed"] = json.loads(out)["mean"]
    assert found[0] == found[1]
    assert found[0]["moved_slots"] < 40
    code, out, err = call("replay", files / "window.safetensors", *CLUSTER, "--placement", other)
    assert f"{other}: " in out
    assert "slots of 32 experts" in out


def test_maps_that_do_not_fit_are_refused(call: Callable[..., Answer], files: Path) -> None:
    """Another EP group's devices, another model's layers, and layers that a bare trace does not name."""
    placed = Placement(np.tile(np.arange(40) % 32, (3, 1)), np.array([2, 3, 4]))
    placed.export("vllm-ascend", files / "map.json", num_ranks=8)
    words = ("plan", files / "window.safetensors", *CLUSTER, "--out", files / "made.safetensors", "--previous")
    refused(call(*words, files / "map.json"), "map.json: devices: found 8, expected 4")
    placed.export("vllm-ascend", files / "map.json", num_ranks=4)
    refused(call(*words, files / "map.json"), "map.json: found 3 layers, expected the trace's 2")
    Placement(placed.phy2log[:2], np.array([1, 3])).export("tensorrt-llm", files / "map.yaml")
    refused(call(*words, files / "map.yaml"), "map.yaml: found layers [1, 3], expected [3, 4]")
    placed.export("sglang", files / "map.json")
    refused(
        call("plan", files / "trace.npz", *CLUSTER, "--out", files / "made", "--previous", files / "map.json"),
        "map.json: found 5 layers, expected the trace's 2, numbered 0 to 1; fix: pass a trace with layer_ids",
    )
    refused(
        call(*words, files / "trace.npz"), "trace.npz: cannot be read as a placement file (it is an .npz of arrays)"
    )
    (files / "notes.txt").write_text("hello")
    refused(
        call(*words, files / "notes.txt"), "of no kind that is known); fix: pass what `eplb-plugin plan` has written"
    )


# traces


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"ids": np.zeros((1, 2, 3), int)}, "found ids, expected topk_ids"),
        ({"topk_ids": np.zeros((2, 3), int)}, "found topk_ids of shape (2, 3)"),
        ({"topk_ids": np.zeros((1, 2, 3))}, "found topk_ids of shape (1, 2, 3) float64"),
        ({"topk_ids": np.zeros((0, 2, 3), int)}, "found topk_ids of shape (0, 2, 3)"),
        ({"topk_ids": np.full((1, 2, 3), -2)}, "topk_ids: found ids -2..-2"),
        ({"topk_ids": np.zeros((1, 2, 3), int), "num_experts": -4}, "num_experts: found -4"),
        ({"topk_ids": np.full((1, 2, 3), 9), "num_experts": 4}, "topk_ids: found ids 9..9, expected -1..3"),
        ({"topk_ids": np.full((1, 2, 3), 70000)}, "experts: found 70001, expected <= 4096"),
        ({"topk_ids": np.zeros((1, 2, 3), int), "layer_ids": [1, 2]}, "layer_ids: found [1, 2]"),
        ({"topk_ids": np.array([[[None]]])}, "cannot be read as a trace"),
    ],
)
def test_bad_traces(tmp_path: Path, call: Callable[..., Answer], arrays: dict[str, object], line: str) -> None:
    """Wrong arrays in an .npz: one line that names the file."""
    path = tmp_path / "trace.npz"
    np.savez(path, **arrays)
    refused(call("replay", path, *CLUSTER), f"{path}: ", line)


@pytest.mark.parametrize("name", ["trace.npz", "window.safetensors"])
@hypothesis_settings(
    deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files(files: Path, name: str, data: st.DataObject) -> None:
    """Truncated anywhere or with flipped bytes: read as a window, or refused in one line; nothing else."""
    whole = (files / name).read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        at = data.draw(st.one_of(st.integers(0, len(damaged) - 1), st.integers(0, min(400, len(damaged) - 1))))
        damaged[at] ^= data.draw(st.integers(1, 255))
    path = files / f"damaged-{name}"
    path.write_bytes(damaged)
    message = f"{path}: none"
    try:
        read_window(path)
    except PluginError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_missing_trace(call: Callable[..., Answer], tmp_path: Path) -> None:
    for name in ("missing.npz", "missing.safetensors", ""):
        refused(call("replay", tmp_path / name, *CLUSTER), "cannot be read")


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
