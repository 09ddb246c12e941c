"""The serving benchmark with vLLM's servers and load generator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_bench_runs import run_serve_bench

pytestmark = pytest.mark.server


def test_arms_on_real_servers(tmp_path: Path) -> None:
    """Two arms, prompts from a file in ShareGPT's format: results for every concurrency, a table, no process left."""
    texts = [f"Write {number} words about the number {number} and its neighbours." for number in range(4, 20)]
    turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": text * 2}] for text in texts]
    chats = [{"id": str(number), "conversations": turn} for number, turn in enumerate(turns)]
    dataset = tmp_path / "chats.json"
    dataset.write_text(json.dumps(chats))
    words = ["--runs", "1", "--dataset", str(dataset)]
    out, runs, settings = run_serve_bench("vllm", tmp_path / "out", ["none", "affinity"], *words)
    for arm in ("none", "affinity"):
        assert [run.concurrency for run in sorted(runs[arm], key=lambda run: run.file)] == [2, 4]
        assert {run.completed for run in runs[arm]} == {8}
        assert all(set(run.figures) == {"ttft_p50_ms", "tpot_p90_ms", "itl_p95_ms", "qps"} for run in runs[arm])
    assert "0 of 8 comparisons decided" in out
    assert "--enable-eplb" not in settings["arms"]["none"]
    assert settings["arms"]["affinity"][: len(settings["arms"]["none"])] == settings["arms"]["none"]
    log = (tmp_path / "out" / "logs" / "affinity-run1.log").read_text()
    assert "32 experts in 36 slots" in log
