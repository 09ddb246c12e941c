"""`eplb-plugin report`: writes the file, says how large it is, and refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin.placement import linear_placement
from eplb_plugin.workloads.routing import ClusteredRouter

Answer = tuple[int, str, str]
DEMO = Path(__file__).parents[1] / "observe" / "data" / "demo.json"
LAYOUT = ("--nodes", 2, "--ranks-per-node", 2)


needs_plotly = pytest.mark.skipif(find_spec("plotly") is None, reason="plotly is not installed: pip install plotly")


@needs_plotly
def test_the_command(call: Callable[..., Answer], tmp_path: Path) -> None:
    """Several traces are windows, a placement is what comes after; a file for another EP size is refused."""
    router = ClusteredRouter(2, 32, 4)
    traces: list[object] = []
    for seed in (0, 1):
        np.savez(tmp_path / f"w{seed}.npz", topk_ids=router.window(200, seed), num_experts=32)
        traces += ["--trace", tmp_path / f"w{seed}.npz"]
    linear_placement(2, 32, 36).save(tmp_path / "p.safetensors", {"num_ranks": 4})
    out = tmp_path / "report.html"
    words = ("report", "--out", out, *traces, "--placement", tmp_path / "p.safetensors")
    code, text, err = call(*words, *LAYOUT, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text) == {"report": str(out), "bytes": len(out.read_bytes())}
    html = out.read_text()
    assert "2 windows, oldest first: w0, w1" in html
    assert "KiB" in call(*words, *LAYOUT)[1]
    code, text, err = call(*words, "--nodes", 3, "--ranks-per-node", 1)
    assert (code, text) == (2, "")
    assert "num_ranks: found 4, expected 3" in err


@needs_plotly
def test_everything_else_that_it_takes(call: Callable[..., Answer], tmp_path: Path) -> None:
    """The demo's results, paired rounds, a server's log and advice stand in the page; of each kind there is one."""
    line = "rebalance 1 of m: planned balancedness 0.712 -> 0.991, 5 of 40 slots move, planned in 1.0 ms"
    (tmp_path / "server.log").write_text(line)
    router = ClusteredRouter(2, 32, 4)
    np.savez(tmp_path / "w.npz", topk_ids=router.window(400, 0), num_experts=32)
    advised = ("advise", tmp_path / "w.npz", *LAYOUT, "--policy", "balanced", "--dispatch", "weighted", "--json")
    (tmp_path / "advice.json").write_text(call(*advised)[1])
    out = tmp_path / "report.html"
    words = ("report", "--out", out, "--log", tmp_path / "server.log", "--advice", tmp_path / "advice.json")
    code, _, err = call(*words, "--bench", DEMO)
    assert (code, err) == (0, "")
    html = out.read_text()
    for part in ("0.712", "Enable EPLB with", "expert slots moved"):
        assert part in html
    code, _, err = call("report", "--out", out, "--bench", DEMO, "--bench", DEMO)
    assert code == 2
    assert "--bench: found 2 files that each have all arms, expected one" in err


def test_refusals(call: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    linear_placement(1, 4, 4).save(tmp_path / "p.safetensors")
    cases = {
        (): "found nothing to show",
        ("--placement", tmp_path / "p.safetensors"): "found placements alone",
        ("--trace", tmp_path / "no.npz"): "cannot be read",
        ("--bench", tmp_path): "no .json or .jsonl file",
        ("--log", tmp_path / "p.safetensors"): "found no rebalance",
        ("--advice", tmp_path / "p.safetensors"): "expected what `advise --json` prints",
    }
    for words, line in cases.items():
        code, text, err = call("report", "--out", out, *words)
        assert (code, text, len(err.splitlines())) == (2, "", 1)
        assert line in err
    assert not out.exists()
