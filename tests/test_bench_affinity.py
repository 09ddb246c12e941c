"""The comparison of dispatch rules runs on traffic of its own and on a trace, and writes what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benches import affinity as bench
from eplb_plugin.workloads.routing import ClusteredRouter


@pytest.mark.parametrize("own", [True, False])
def test_the_script_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own: bool
) -> None:
    monkeypatch.setattr(bench, "TOKENS", 512)
    out, trace = tmp_path / "new" / "bench.json", tmp_path / "trace.npz"
    words = ["--quick", "--layers", "1", "--draws", "1", "--json", str(out)]
    if not own:
        np.savez(trace, topk_ids=ClusteredRouter(1, 32, 4, num_topics=8).window(1024))
        words += [str(trace), "--nodes", "2", "--ranks-per-node", "2", "--slots-per-rank", "10"]
    monkeypatch.setattr("sys.argv", ["bench_affinity", *words])
    bench.main()
    (result,) = json.loads(out.read_text())
    assert [row["rule"] for row in result["rows"]] == ["hash", *bench.RULES]
    assert result["rows"][0]["policy"] == "deepseek"
    assert all(row["fewer_copies"] > 0.0 for row in result["rows"][2:])
    printed = capsys.readouterr().out
    assert ("trace.npz" if not own else "128 experts") in printed
    assert "affinity, cover" in printed
