"""The engine's own load generator: its report is read, and whatever is wrong with a run ends it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eplb_plugin.bench.engine import Load
from eplb_plugin.bench.load_generator import run_bench
from eplb_plugin.bench.server import ServerError
from stand_in import StandIn

LOAD = Load(requests=4, concurrency=2)


def ask(folder: Path, engine: Any, ended: int | None = None) -> dict[str, float]:
    """A run against a server that needs no process."""
    server = SimpleNamespace(
        engine=engine, model=Path("m"), url="", environment=None, ended=lambda: ended, tail=lambda: "its log's end"
    )
    return run_bench(server, LOAD, folder / "none" / "run1.json", lambda text: None)  # type: ignore[arg-type]


class Script(StandIn):
    """A load generator that is a line of Python."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder, "serves", {})
        self.script = script

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        return [sys.executable, "-c", self.script]


def test_its_figures_are_read(tmp_path: Path) -> None:
    figures = ask(tmp_path, StandIn(tmp_path, "serves", {}))
    assert figures["ttft_p50"] == 1.0
    assert "completed" not in figures


def test_unanswered_requests_are_no_result(tmp_path: Path) -> None:
    few = StandIn(tmp_path, "serves", {})
    few.answered = 3
    with pytest.raises(ServerError, match="only 3 of 4 requests were answered"):
        ask(tmp_path, few)


def test_one_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"exit code 1\n(.*\n)*ValueError: no prompts"):
        ask(tmp_path, Script(tmp_path, "raise ValueError('no prompts')"))


def test_a_server_that_ends_meanwhile_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="the server ended during the benchmark\nits log's end"):
        ask(tmp_path, Script(tmp_path, "import time; time.sleep(60)"), ended=1)
