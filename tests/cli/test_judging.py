"""Steps in `replay`: their own balance beside the window's, and what quotas of the very step make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli_files import CLUSTER, ROUTER, TOPOLOGY, Answer, refused
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import judge_layers


def replayed(call: Callable[..., Answer], *words: object) -> dict:
    code, out, err = call("replay", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_steps_are_judged_one_by_one(call: Callable[..., Answer], files: Path) -> None:
    """A file's figure is score.judge's of steps of 100 tokens, the loads of busiest ranks added up."""
    placement = linear_placement(2, 32, 40)
    placement.save(files / "placement.safetensors")
    words = (files / "trace.npz", *CLUSTER, "--dispatch", "hash", "--placement", files / "placement.safetensors")
    whole, steps = (replayed(call, *words, "--draws", 1, *more) for more in ((), ("--step-tokens", 100)))
    rows, made = ROUTER.window(600, 0), plan_of(placement, TOPOLOGY, "hash")
    sources = np.random.default_rng([0, 0]).integers(0, 4, 600)
    each = [
        1 / judge_layers(rows[:, first : first + 100], sources[first : first + 100], made).balancedness
        for first in range(0, 600, 100)
    ]
    assert steps["mean"]["step_balancedness"] == pytest.approx(1 / np.mean(each))
    assert "step_balancedness" not in whole["mean"]


def test_exact_is_more_even_in_every_step(
    call: Callable[..., Answer], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tokens that neither plan has seen; the tables' figures stand beside."""
    answer = replayed(call, files / "trace.npz", *CLUSTER, "--step-tokens", 100, "--exact", "--draws", 1)
    assert [run["run"] for run in answer["exact"]["runs"]] == [
        "first half → second, exact",
        "second half → first, exact",
    ]
    assert answer["exact"]["mean"]["step_balancedness"] > answer["mean"]["step_balancedness"] + 0.05
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call("replay", files / "trace.npz", *CLUSTER, "--step-tokens", 100, "--exact", "--draws", 1)
    assert code == 0
    assert "mean, exact" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--exact"], "--exact: found no --step-tokens"),
        (["--step-tokens", "301"], "step tokens: found 300 token rows to judge, expected at least 301"),
    ],
)
def test_wrong_steps_are_refused(call: Callable[..., Answer], files: Path, words: list[str], line: str) -> None:
    refused(call("replay", files / "trace.npz", *CLUSTER, *words), line)
