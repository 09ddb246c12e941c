"""The benchmark's command in the tests' own process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eplb_plugin.bench import run
from eplb_plugin.bench.engines import ENGINES
from serve_bench_runs import Answer
from stand_in import StandIn


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Answer]]:
    """`eplb-plugin bench` in this process; results go to tmp_path/out."""
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("COLUMNS", "250")

    def call(*words: object) -> Answer:
        code = run.main(["--out", str(tmp_path / "out"), *map(str, words)])
        return code, *capsys.readouterr()

    yield call
    for sign, handler in handlers.items():
        signal.signal(sign, handler)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    def make(way: str, **qps: float) -> StandIn:
        made = StandIn(tmp_path, way, qps)
        monkeypatch.setitem(ENGINES, "vllm", made)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
        return made

    return make
