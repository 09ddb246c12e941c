"""The options of the benchmark on nodes: a file of settings holds for every arm; contradictions are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serving.options import STEPS, Options, parse
from serve_bench_runs import config


def options(*words: object) -> Options:
    return parse(["--network", "2x1", *map(str, words)])


def test_window_and_interval_are_the_files(tmp_path: Path) -> None:
    assert (options().window_size, options().step_interval) == STEPS
    named = options("--config", config(tmp_path, "window_size: 96\nbalance_tolerance: 0\n"), "--step-interval", 192)
    assert (named.window_size, named.step_interval) == (96, 192)
    assert named.settings == {"window_size": 96, "balance_tolerance": 0.0}
    same = options("--config", config(tmp_path, "window_size: 96\n"), "--window-size", 96)
    assert (same.window_size, same.step_interval) == (96, STEPS[1])


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("window_size: 96\n", ["--window-size", 64], "--window-size: found 64, expected 96 as in --config"),
        ("num_redundant_experts: 4\n", [], "--config: found num_redundant_experts, expected --redundancy"),
        ("windows: 1\n", [], "windows"),
        ("balance_tolerance: 0\n", ["--step-interval", 0], "found a number that is not positive"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[object], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        options("--config", config(tmp_path, text), *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
