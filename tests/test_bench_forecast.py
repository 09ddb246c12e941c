"""The comparison that chose the forecast still chooses it, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import forecast as bench


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LAYERS", 16)
    monkeypatch.setattr(bench, "PER_EXPERT", (256,))


@pytest.mark.usefixtures("small")
def test_forecast_wins_over_all_traffic() -> None:
    """Mean held-out balance over every kind of traffic: above all that lost, save for the forecast shrunk."""
    found = [bench.measure(kind, 256, seeds=2) for kind in bench.TRAFFIC]
    for cluster in bench.CLUSTERS:
        mean = {way: np.mean([row[cluster][way] for row in found]) for way in bench.WAYS}
        losers = [value for way, value in mean.items() if way not in ("forecast", "shrunk forecast")]
        assert mean["forecast"] > max(losers)
        assert mean["forecast"] > mean["last window"] + 0.01


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    out = tmp_path / "new" / "bench.json"
    monkeypatch.setattr("sys.argv", ["bench_forecast", "--seeds", "1", "--out", str(out), *words])
    assert bench.main() == 0
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert len(written["results"]) == len(bench.TRAFFIC)
    assert json.loads(printed) == written if words else "largest loss" in printed
