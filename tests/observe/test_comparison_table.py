"""The table of arms: every figure of every arm, what is decided, and a column that the caller adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin.observe.bench_results import HEADINGS, Run, read_runs
from eplb_plugin.observe.comparison import compare
from eplb_plugin.observe.comparison_table import show
from generators import vllm_result


def runs(folder: Path, qps: list[float]) -> list[Run]:
    folder.mkdir()
    for number, one in enumerate(qps):
        (folder / f"{number}.json").write_text(json.dumps(vllm_result(one)))
    return read_runs(folder)


def test_figures_verdicts_and_an_added_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arms = {
        "slow": runs(tmp_path / "a", [4, 4.1, 4.2, 3.9, 3.8]),
        "fast": runs(tmp_path / "b", [8, 8.1, 8.2, 7.9, 7.8]),
    }
    show(compare(arms, 0.05), ("gsm8k", {"fast": "0.95"}))
    out = capsys.readouterr().out
    for part in (*HEADINGS.values(), "gsm8k", "slow", "fast", "+100.0%", "better", "4 of 4 comparisons decided"):
        assert part in out
    assert (out.count("0.95"), out.count("–") > 0) == (1, True)  # an arm without the added figure has a dash
