"""Accuracy by lm_eval: asked once per arm, its figure and standard error read, whatever its metric is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench import accuracy
from eplb_plugin.bench.server import ServerError
from serve_bench_runs import Answer
from stand_in import StandIn


def results(folder: Path, name: str, **tasks: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"results": tasks}))


def test_it_is_measured_and_shown(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has a column with the task's figure and standard error, for every arm."""
    figures = {"alias": "gsm8k", "exact_match,strict-match": 0.9545, "exact_match_stderr,strict-match": 0.0057}
    text = json.dumps({"results": {"gsm8k": figures}})
    program = tmp_path / "lm_eval"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1]) / 'm'\n"
        f"out.mkdir(parents=True)\n(out / 'results_1.json').write_text({text!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stand_in("serves")
    words = ["--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--concurrency", 2, "--runs", 2]
    code, out, err = bench(*words, "--accuracy", "gsm8k")
    assert (code, err) == (0, "")
    assert out.count("0.9545 ± 0.0057") == 2


def test_the_newest_results_count(tmp_path: Path) -> None:
    results(tmp_path, "results_1.json", mmlu={"acc,none": 0.5, "acc_stderr,none": 0.1})
    results(tmp_path, "results_2.json", mmlu={"alias": "mmlu", "acc,none": 0.6, "acc_stderr,none": 0.2})
    assert accuracy.read(tmp_path, "mmlu").text == "0.6000 ± 0.2000"


def test_a_task_given_as_a_file_has_another_name(tmp_path: Path) -> None:
    results(tmp_path, "results_1.json", its_own_name={"f1,none": 1, "f1_stderr,none": 0})
    found = accuracy.read(tmp_path, "tasks/mine.yaml")
    assert (found.metric, found.value) == ("f1, none", 1.0)


def test_no_figure_is_told(tmp_path: Path) -> None:
    results(tmp_path, "results_1.json", mmlu={"acc,none": "N/A"})
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ServerError, match="no figure of mmlu"):
            accuracy.read(folder, "mmlu")
