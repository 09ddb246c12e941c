"""What the benchmark on a user's machine refuses: in one line, exit code 2, nothing left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_bench_runs import Answer, config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "m", "--arms", "none,best"], "--arms: found best, expected some of none, vanilla"),
        (["--model", "m", "--arms", "none,none"], "expected every arm once"),
        (["--engine", "sglang", "--model", "m", "--arms", "vanilla-sync"], "found vanilla-sync"),
        ([], "--model: found nothing"),
        (["--model", "m"], "--redundant-experts: found nothing"),
        (["--model", "m", "--config", "none.yaml"], "none.yaml: cannot be read"),
        (["--model", "m", "--dataset", "none.json"], "none.json: cannot be read"),
        (["--model", "m", "--arms", "none", "--concurrency", "8,0"], "--concurrency: found 8,0"),
        (["--model", "m", "--arms", "none", "--random", "4096"], "expected IN:OUT"),
        (["--model", "m", "--url", "a=localhost:8000"], "--url: found a=localhost:8000"),
        (["--model", "m", "--url", "a=http://h", "--arms", "none"], "expected neither --arms"),
        (["--model", "m", "--arms", "none", "--", "--enable-eplb"], "arguments after --: found --enable-eplb"),
        (["--model", "m", "--arms", "none", "--", "--eplb-config.window_size=4"], "found --eplb-config"),
    ],
)
def test_refused_in_one_line(bench: Callable[..., Answer], tmp_path: Path, words: list[str], line: str) -> None:
    code, out, err = bench(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
    assert not (tmp_path / "out").exists()


def test_unequal_redundancy_is_refused(bench: Callable[..., Answer], tmp_path: Path) -> None:
    """The settings file and the flag must say the same."""
    path = config(tmp_path, "num_redundant_experts: 16\n")
    code, _, err = bench("--model", "m", "--config", path, "--redundant-experts", 32)
    assert code == 2
    assert "found 32, expected 16" in err


def test_old_results_are_not_mixed_with(bench: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "out" / "none").mkdir(parents=True)
    code, _, err = bench("--model", "m", "--arms", "none")
    assert (code, "which is not empty" in err) == (2, True)


def test_missing_lm_eval_is_told_before_anything_starts(
    bench: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    code, _, err = bench("--model", "m", "--arms", "none", "--accuracy", "gsm8k")
    assert (code, "--accuracy: found no lm_eval" in err) == (2, True)


def test_the_entry_asks_for_the_engine() -> None:
    """Without --cpu it runs with the user's Python, and says so where that has no engine."""
    script = ROOT / "scripts" / "serve_bench"
    done = subprocess.run([sys.executable, "-E", "-S", script, "--model", "m"], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "found no vllm" in done.stderr
