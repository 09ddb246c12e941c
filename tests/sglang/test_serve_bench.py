"""The serving benchmark with SGLang's servers and load generator."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_bench_runs import run_serve_bench

pytestmark = pytest.mark.server


def test_arms_on_real_servers(tmp_path: Path) -> None:
    """Two arms, random prompts: results for every concurrency, a table, and no process left."""
    out, runs, settings = run_serve_bench(
        "sglang", tmp_path / "out", ["vanilla", "affinity"], "--runs", "1", "--random", "32:8"
    )
    for arm in ("vanilla", "affinity"):
        assert [run.concurrency for run in sorted(runs[arm], key=lambda run: run.file)] == [2, 4]
        assert {(run.completed, run.input_tokens, run.output_tokens) for run in runs[arm]} == {(8, 256, 64)}
        assert all(set(run.figures) == {"ttft_p50_ms", "tpot_p90_ms", "itl_p95_ms", "qps"} for run in runs[arm])
    assert "0 of 8 comparisons decided" in out
    assert settings["arms"]["affinity"][: len(settings["arms"]["vanilla"])] == settings["arms"]["vanilla"]
    log = (tmp_path / "out" / "logs" / "affinity-run1.log").read_text()
    assert "32 experts in 36 slots" in log
