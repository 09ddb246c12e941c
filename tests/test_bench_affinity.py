"""The comparison of dispatch rules runs on traffic of its own and on a trace, and writes what it shows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from bench import affinity as bench
from eplb_plugin.workloads.routing import ClusteredRouter
from lab.figures import tradeoff


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


def test_the_curve_is_drawn_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A point for every tolerance and vanilla; the bound on ingress is the same along a curve."""
    figures = {"cross_node_copies": 2.0, "balancedness": 0.9, "busiest_ingress": 1.1}
    rows = [{"policy": "deepseek", "rule": "hash", **figures}]
    for rule in bench.RULES:
        for balance, ingress in ((0.02, 0.02), (0.0, 0.02), (0.02, 1.0)):
            both = {"balance_tolerance": balance, "ingress_tolerance": ingress, "fewer_copies": 0.25}
            rows.append({"policy": "affinity", "rule": rule, **both, **figures, "cross_node_copies": 1.5 + balance})
    out, picture = tmp_path / "bench.json", tmp_path / "tradeoff.svg"
    out.write_text(json.dumps([{"traffic": "some", "layers": 1, "rows": rows}]))
    monkeypatch.setattr(tradeoff, "TARGET", picture)
    monkeypatch.setattr("sys.argv", ["draw_tradeoff", str(out)])
    tradeoff.main()
    printed = capsys.readouterr().out
    assert "| balance tolerance | 0 | 0.02 |" in printed
    assert "| `cover` | 1.500, 0.900, 1.10 (-25.0%) | 1.520, 0.900, 1.10 (-25.0%) |" in printed
    circles = [one for one in ElementTree.parse(picture).iter() if one.tag.endswith("circle")]
    assert len(circles) == 1 + 2 * len(bench.RULES)
