"""Ordering placements, from the client's side: requests are sent until the server has answered this very order."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.serving.placements import Placements, switching_environment
from eplb_plugin.bench.server import ServerError


class FakeServer:
    """Answers an order in the third wave of requests."""

    def __init__(self, folder: Path, **answer: Any) -> None:
        self.folder, self.answer, self.waves = folder, answer, 0

    def drive(self) -> None:
        self.waves += 1
        if self.waves % 4 == 3:
            order = json.loads((self.folder / "order.json").read_text())
            (self.folder / "answer.json").write_text(json.dumps({"number": order["number"], **self.answer}))


def placements(folder: Path, server: FakeServer, seconds: float = 60) -> Placements:
    return Placements(folder, SimpleNamespace(tail=lambda: "end of log"), server.drive, seconds)  # type: ignore[arg-type]


def test_an_order_ends_with_its_own_answer_and_one_wave_more(tmp_path: Path) -> None:
    """The answer to the order before it lies there still, and says nothing."""
    server = FakeServer(tmp_path, digest="abc")
    client = placements(tmp_path, server)
    assert client.order("deepseek", "hash") == {"number": 1, "digest": "abc"}
    assert server.waves == 4
    assert client.order("affinity", "weighted")["number"] == 2
    assert server.waves == 8
    assert json.loads((tmp_path / "order.json").read_text())["policy"] == "affinity"


def test_a_refused_order_and_a_silent_server_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="affinity, hash: no room"):
        placements(tmp_path, FakeServer(tmp_path, error="no room")).order("affinity", "hash")
    folder = tmp_path / "silent"
    folder.mkdir()
    silent = FakeServer(folder)
    with pytest.raises(ServerError, match="end of log"):
        placements(folder, silent, seconds=0.0).order("affinity", "hash")


def test_servers_find_the_plugin_before_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    path, rest = switching_environment(tmp_path)["PYTHONPATH"].split(":")
    assert (Path(path) / "eplb_bench_switch.py").is_file()
    assert list(Path(path).glob("*.dist-info/entry_points.txt"))
    assert rest == "/somewhere"
