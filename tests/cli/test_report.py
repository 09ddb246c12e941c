"""`eplb-plugin report`: writes the file, says how large it is, and refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eplb_plugin.placement import linear_placement
from eplb_plugin.workloads.routing import ClusteredRouter

Answer = tuple[int, str, str]
LAYOUT = ("--nodes", 2, "--ranks-per-node", 2)


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
    assert "2 windows, oldest first: w0, w1" in out.read_text()
    assert "KiB" in call(*words, *LAYOUT)[1]
    code, text, err = call(*words, "--nodes", 3, "--ranks-per-node", 1)
    assert (code, text) == (2, "")
    assert "num_ranks: found 4, expected 3" in err


def test_refusals(call: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    linear_placement(1, 4, 4).save(tmp_path / "p.safetensors")
    cases = {
        (): "found nothing to show",
        ("--placement", tmp_path / "p.safetensors"): "found placements alone",
        ("--trace", tmp_path / "no.npz"): "cannot be read",
        ("--bench", tmp_path): "no .json or .jsonl file",
    }
    for words, line in cases.items():
        code, text, err = call("report", "--out", out, *words)
        assert (code, text, len(err.splitlines())) == (2, "", 1)
        assert line in err
    assert not out.exists()
