"""The benchmark of the first plan runs, and its figures are of what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cold_start as bench


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_filled_cache_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Only its first process compiles: one that finds its cache compiles nothing."""
    out, before = tmp_path / "new" / "bench.json", bench.PROCESS.index("made = None")
    one_kernel = "from eplb_plugin.planning.replicas.counts import apportion\napportion(window.load[0] * 1.0, 80, 8)\n"
    after = bench.PROCESS.index("compiled =")
    monkeypatch.setattr(bench, "PROCESS", bench.PROCESS[:before] + one_kernel + bench.PROCESS[after:])
    words = ["--policy", "affinity", "--dispatch", "hash", "--out", str(out), *words]
    monkeypatch.setattr("sys.argv", ["bench_cold_start", *words])
    assert bench.main() == 0
    (row,), printed = json.loads(out.read_text())["rows"], capsys.readouterr().out
    assert (row["policy"], row["rule"]) == ("affinity", "hash")
    assert row["empty"]["compiled"] > 0 == row["filled"]["compiled"]
    assert all(row[state][figure] > 0.0 for state in ("empty", "filled") for figure in ("cpu", "seconds"))
    assert printed.startswith("{") == ("--json" in words)
