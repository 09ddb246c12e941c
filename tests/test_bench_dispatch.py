"""The costs of the dispatch rules are measured, computed and counted for every rule, and written as shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import dispatch as bench
from eplb_plugin import Topology
from eplb_plugin.workloads.routing import ClusteredRouter


def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "EXPERTS": 16, "TOP_K": 4, "TOPOLOGY": Topology(2, 2, 5), "LAYERS": 3, "BATCHES": (4,), "TOKENS": 512,
        "HIDDEN": 16, "INTERMEDIATE": 8, "PASSED": 2, "EXACT": ((16, Topology(2, 2, 5)),),
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)
    out, trace = tmp_path / "new" / "bench.json", tmp_path / "trace.npz"
    np.savez(trace, topk_ids=ClusteredRouter(1, 16, 4, num_topics=8).window(1024))
    words = [
        "--quick",
        str(trace),
        "--nodes",
        "2",
        "--ranks-per-node",
        "2",
        "--slots-per-rank",
        "5",
        "--json",
        str(out),
    ]
    monkeypatch.setattr("sys.argv", ["bench_dispatch", *words])
    bench.main()
    results = json.loads(out.read_text())
    assert [row["rule"] for row in results["calls"]] == list(bench.RULES)
    assert all(row["map_ms"] > 0 for row in results["calls"])
    assert [(row["rule"], row["layers"]) for row in results["tables"]] == [(rule, 3) for rule in bench.RULES]
    assert [row["policy"] for row in results["copies"]] == ["deepseek", *["affinity"] * 3]
    assert results["own_function"]["maps"] is False  # a stub on CPUs: no figure of it is one of vLLM's mapping
    assert [(row["rule"], row["replicated"] > 0) for row in results["exact"]] == [("weighted", True), ("cover", True)]
    assert all(0 < row["solve_ms"] < row["choose_ms"] and row["count_ms"] > 0 for row in results["exact"])
    for row in results["exact"]:
        assert row["arms"]["exact"]["balancedness"] > max(0.95, row["arms"]["tables"]["balancedness"])
    printed = capsys.readouterr().out
    assert "trace.npz" in printed
    assert "never run on a GPU" in printed
