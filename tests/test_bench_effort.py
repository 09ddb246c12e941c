"""The benchmark of efforts runs at a small size; its rows are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import effort as bench


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    out = tmp_path / "new" / "bench.json"
    small = ["--layers", "1", "--tokens", "512", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["bench_effort", *small, *words])
    assert bench.main() == 0
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    vanilla, *rows = written["rows"]
    assert {(row["kind"], row["rule"], row["effort"]) for row in rows} == {
        *((kind, rule, effort) for kind in ("full", "repair") for rule in bench.RULES for effort in bench.EFFORTS),
        ("re-split", "weighted", ""),
        ("re-split", "cover", ""),
    }
    full = {(row["rule"], row["effort"]): row for row in rows if row["kind"] == "full"}
    assert all(row["cross_node_copies"] < vanilla["cross_node_copies"] for row in full.values())
    for rule in bench.RULES:
        saved = [
            vanilla["cross_node_copies"] - full[rule, effort]["cross_node_copies"] for effort in ("thorough", "fast")
        ]
        assert full[rule, "fast"]["part_of_gain"] == pytest.approx(saved[1] / saved[0])
    assert ("part of the gain" in printed) == (not words)
