"""`eplb-plugin advise`: the table, JSON without infinities, a settings file that `config check` accepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin.workloads.routing import ClusteredRouter

Answer = tuple[int, str, str]
CLUSTER = ("--nodes", 2, "--ranks-per-node", 2)
QUICK = ("--policy", "balanced", "--policy", "affinity", "--dispatch", "hash")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    router = ClusteredRouter(1, 32, 4, num_topics=4, purity=0.8, strength=3.0, skew=1.0)
    np.savez(tmp_path / "trace.npz", topk_ids=router.window(800), num_experts=32)
    return tmp_path / "trace.npz"


def test_advice_and_settings(call: Callable[..., Answer], trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "eplb.yaml"
    words = ("advise", trace, *CLUSTER, *QUICK, "--hidden", 64, "--intermediate", 32, "--out", out)
    code, text, err = call(*words)
    assert (code, err) == (0, "")
    for part in (
        "advice: enable it",
        "how sure: halves of 400 tokens",
        "GiB per rank",
        "a later rebalance moves ",
        " GB",
        "settings written",
    ):
        assert part in text
    assert call("config", "check", out)[0] == 0
    answer = json.loads(call(*words, "--json")[1])
    assert answer["enable"] is True
    assert answer["settings"] == out.read_text()
    assert answer["expert_bytes"] == 3 * 64 * 32 * 2
    assert len(answer["outcomes"]) == 4


def test_steps_have_a_column_and_exact_a_row(
    call: Callable[..., Answer], trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is said how many tokens a step has; for affinity and the rule that spares copies, if it was tried."""
    monkeypatch.setenv("COLUMNS", "120")
    words = ("advise", trace, *CLUSTER, *QUICK, "--dispatch", "weighted", "--tokens-per-step", 100)
    code, text, err = call(*words)
    assert (code, err) == (0, "")
    for part in (
        "(of single steps 0.",
        "steps: ",
        "affinity weighted exact",
        "exact, 4 redundant experts, would bring",
    ):
        assert part in text
    outcomes = json.loads(call(*words, "--json")[1])["outcomes"]
    assert [one["candidate"]["exact"] for one in outcomes] == [False] * 8 + [True]
    assert all(0.0 < figure <= 1.0 for one in outcomes for figure in one["step_balancedness"])
    assert "steps: " not in call("advise", trace, *CLUSTER, *QUICK)[1]


def test_without_copies_one_rule_is_enough(call: Callable[..., Answer], trace: Path) -> None:
    """All rules are tried by default, where there is a copy to choose."""
    answer = json.loads(call("advise", trace, *CLUSTER, "--policy", "balanced", "--json")[1])
    tried = [(one["candidate"]["redundant"], one["candidate"]["dispatch"]) for one in answer["outcomes"]]
    assert tried == [(0, "weighted"), (4, "hash"), (4, "nearest"), (4, "weighted"), (4, "cover")]


def test_above_62_nodes_the_rules_that_run_there_are_tried(call: Callable[..., Answer], trace: Path) -> None:
    """`weighted` and `cover` cannot: left out by default, without a word of refusal, and refused if they are named."""
    words = ("advise", trace, "--nodes", 64, "--ranks-per-node", 1, "--policy", "balanced")
    code, text, err = call(*words, "--redundant", 32, "--redundant", 96, "--json")
    assert (code, err) == (0, "")
    assert [one["candidate"]["dispatch"] for one in json.loads(text)["outcomes"]] == ["hash", "nearest"] * 2
    assert json.loads(text)["best"]["dispatch"] == "hash"
    code, _, err = call(*words, "--dispatch", "weighted", "--redundant", 32)
    assert code == 2
    assert "topology.num_nodes: found 64, expected at most 62 for dispatch weighted" in err


def test_a_load_file_is_enough(call: Callable[..., Answer], tmp_path: Path) -> None:
    heat = [{"layer": 0, "heat": [int(1000 / (1 + expert)) for expert in range(32)]}]
    (tmp_path / "loads.json").write_text(json.dumps({"layers": heat, "k": 4}))
    code, text, err = call("advise", tmp_path / "loads.json", *CLUSTER, "--dispatch", "hash")
    assert (code, err) == (0, "")
    assert "only counting noise" in text
    assert "affinity" not in text.split("advice:")[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--redundant", 3), "redundant experts: found 3"),
        (("--engine", "other"), "--engine: found other"),
        (("--policy", "x"), "policy: found 'x'"),
        (("--dispatch", "x"), "dispatch: found 'x'"),
        (("--tokens-per-step", 0), "--tokens-per-step: found 0"),
        (("--nodes", 0), "topology: found 0 ranks"),
        (("--dispatch", "nearest", "--redundant", 4, "--out", "x.yaml"), "--out: found nothing to write"),
    ],
)
def test_bad_input_is_one_line(call: Callable[..., Answer], trace: Path, words: tuple[object, ...], line: str) -> None:
    policy = () if "--policy" in words else ("--policy", "balanced")
    code, out, err = call("advise", trace, *CLUSTER, *policy, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
