"""The comparison of `exact` with tables, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import exact as bench
from eplb_plugin import Topology
from eplb_plugin.workloads.routing import ClusteredRouter


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "SHAPES", (("decode", Topology(2, 2, 10)), ("prefill", Topology(2, 2, 10))))
    monkeypatch.setattr(bench, "LARGE", Topology(2, 2, 65))
    ids = ClusteredRouter(1, 32, 4, num_topics=4).window(4096, 0)
    np.savez(tmp_path / "trace.npz", topk_ids=ids, sample=np.arange(4096) // 100)
    return tmp_path / "trace.npz"


def test_exact_is_more_even_than_tables(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    monkeypatch.setattr(
        "sys.argv", ["bench_exact", str(trace), "--steps", "6", "--repeats", "1", "--out", str(out), "--json"]
    )
    assert bench.main() == 0
    results = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == results
    assert len(results["rows"]) == 2 * len(bench.ARMS)
    assert results["row_us"] > 0.0
    assert results["solve_us"] > 0.0
    for kind in ("decode", "prefill"):
        found = {row["arm"]: row for row in results["rows"] if row["steps"] == kind}
        tables, exact = found["tables: affinity, cover"], found["exact: affinity, cover, arranged"]
        assert exact["balancedness"] > tables["balancedness"] + 0.03
        assert found["exact: deepseek"]["balancedness"] > found["drawn: deepseek"]["balancedness"] + 0.01
        assert found["drawn: deepseek"]["balancedness"] > found["vanilla: deepseek, hash"]["balancedness"]
        assert exact["copies"] < found["vanilla: deepseek, hash"]["copies"]


def test_a_trace_without_rows_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "loads.npz", load=np.ones((2, 4)))
    with pytest.raises(SystemExit, match="found no topk_ids"):
        bench.read(tmp_path / "loads.npz")
