"""The study of drifting traffic runs, and its figures say what they are to say, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import drift as bench


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(bench, "TOKENS", 512)
    out = tmp_path / "new" / "bench.json"
    small = ["--layers", "1", "--windows", "4", "--rules", "weighted", "--noise-layers", "2", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", ["bench_drift", *small, "--out", str(out), *words])
    assert bench.main() == 0
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    arms = {row["arm"]: row["windows"] for row in written["chains"]}
    assert set(arms) == set(bench.ARMS)
    assert all(len(windows) == 3 for windows in arms.values())
    assert all(window["moved"] <= 0.05 for window in arms["warm, 5 %"][1:])
    for arm in ("first plan, re-split", "first plan, re-split for a forecast"):
        assert all(window["moved"] == 0.0 for window in arms[arm])
    assert arms["full"][1]["moved"] > 0.5
    balance = {(row["rule"], row["weights"]): row["balance"] for row in written["noise"] if "V3/32" in row["cluster"]}
    assert balance["weighted", "for the judged window"] > balance["weighted", "for a forecast"]
    assert ("first plan kept" in printed) or written == json.loads(printed)
