"""`eplb-plugin plan`: what it prints and writes, and one line for every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from cli_files import CLUSTER, ROUTER, TOPOLOGY, Answer, refused
from eplb_plugin import Placement, PlanOptions, RoutingStatistics, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Effort
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.step_balance import loads_by_shares, step_balancedness


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


def test_plan_shows_single_steps_where_they_were_recorded(
    call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server's window: before and after, beside the window's own balance; `replay` likewise."""
    monkeypatch.setenv("COLUMNS", "200")
    window = RoutingStatistics.from_topk(ROUTER.window(600, 0), 32, steps=np.arange(600) // 100)
    window.save(files / "steps.safetensors")
    out = files / "made.safetensors"
    words = ("plan", files / "steps.safetensors", *CLUSTER, "--dispatch", "hash", "--out", out)
    answer = json.loads(call(*words, "--json")[1])
    for name, placement in (("before", linear_placement(2, 32, 40)), ("after", Placement.load(out))):
        expected = step_balancedness(loads_by_shares(window.steps, plan_of(placement, TOPOLOGY, "hash")))
        assert answer[name]["step_balancedness"] == pytest.approx(expected)
    assert "single steps" in " ".join(call(*words)[1].split())
    judged = ("replay", files / "steps.safetensors", *CLUSTER, "--dispatch", "hash", "--placement", out, "--json")
    assert json.loads(call(*judged)[1])["mean"]["step_balancedness"] == answer["after"]["step_balancedness"]


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
