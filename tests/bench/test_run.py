"""The benchmark on a user's machine, with servers stood in for: turns, table, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from serve_bench_runs import Answer
from stand_in import StandIn, left

ROOT = Path(__file__).resolve().parents[2]


def test_a_server_that_dies_ends_it_in_one_line(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """The line names the arm, the exit code, the log's error and where the logs are; no child is left."""
    server = stand_in("dies")
    code, _, err = bench("--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--runs", 1)
    assert (code, len(err.splitlines())) == (1, 1)
    for part in ("none, run 1", "exit code 1", "RuntimeError: no GPU here", str(tmp_path / "out")):
        assert part in err
    assert left(server) == []


def test_runs_are_in_turn_and_compared(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """Arms are rotated from run to run, every concurrency is measured on each server, and the table ranks nothing."""
    server = stand_in("serves", none=4.0, vanilla=8.0)
    words = ["--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--concurrency", "2,4", "--runs", 2]
    code, out, err = bench(*words, "--", "--some-flag", "7")
    assert (code, err) == (0, "")
    measured = [name for name in server.measured if not name.startswith("warmup")]
    assert [name.partition("/")[0] for name in measured] == ["none"] * 2 + ["vanilla"] * 4 + ["none"] * 2
    assert "--runs 2 can decide none of 8 comparisons, --runs 6 could" in out
    assert "0 of 8 comparisons decided" in out
    assert "not told apart" in out
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["arms"]["none"] == ["--some-flag", "7"]
    assert settings["arms"]["vanilla"][:2] == ["--some-flag", "7"]
    assert sorted(path.name for path in (tmp_path / "out" / "none").glob("*.json")) == [
        "run1-c2.json", "run1-c4.json", "run2-c2.json", "run2-c4.json",
    ]  # fmt: skip
    assert left(server) == []


def test_running_servers_are_not_stopped(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """--url: loads a server that someone else started, and leaves it running; one that is down is one line."""
    stand_in("serves", mine=4.0)
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    (tmp_path / "health").write_text("")
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().rpartition("port ")[2].split()[0]
        code, out, _ = bench("--model", "m", "--url", f"mine=http://127.0.0.1:{port}", "--concurrency", 2, "--runs", 1)
        running = process.poll() is None
        process.kill()
    assert (code, running) == (0, True)
    assert "one arm: nothing to compare" in out
