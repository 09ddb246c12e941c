"""`eplb-plugin watch`: a screen of a real HTTP server's /metrics, which stays when the server does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from typing import Any, ClassVar

import pytest

from http_answers import answering

watch = import_module("eplb_plugin.cli.watch")  # as an attribute of the package it is the command
Answer = tuple[int, str, str]
MODEL = 'model="qwen"'
TEXT = f"""
# TYPE eplb_plugin_balancedness gauge
eplb_plugin_balancedness{{{MODEL},stat="min"}} 0.8
eplb_plugin_balancedness{{{MODEL},stat="mean"}} 0.9
eplb_plugin_balancedness{{{MODEL},stat="max"}} 0.95
# TYPE eplb_plugin_planned_balancedness gauge
eplb_plugin_planned_balancedness{{{MODEL}}} 0.97
# TYPE eplb_plugin_balancedness_per_step gauge
eplb_plugin_balancedness_per_step{{{MODEL},by="tables"}} 0.7
# TYPE eplb_plugin_cross_node_copies_per_token gauge
eplb_plugin_cross_node_copies_per_token{{{MODEL}}} 1.5
# TYPE eplb_plugin_rebalances counter
eplb_plugin_rebalances_total{{{MODEL},result="accepted"}} 3.0
# TYPE eplb_plugin_moved_slots counter
eplb_plugin_moved_slots_total{{{MODEL}}} 1234.0
# TYPE eplb_plugin_stalled gauge
eplb_plugin_stalled{{{MODEL}}} 0.0
"""


class Handler(BaseHTTPRequestHandler):
    """Answers as long as `left` says, then with an error."""

    left: ClassVar[int] = 10**6

    def do_GET(self) -> None:
        type(self).left -= 1
        self.send_response(200 if self.left >= 0 and self.path == "/metrics" else 503)
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.left = 10**6
    with answering(Handler) as address:
        yield address


def test_one_reading(call: Callable[..., Answer], url: str) -> None:
    """As text, in lines of at most 80 columns, and as JSON."""
    code, out, err = call("watch", url, "--once")
    assert (code, err) == (0, "")
    for part in (
        "qwen",
        "balancedness    0.90 (layers 0.80 to 0.95), planned 0.97  ▇",
        "single steps  0.70 by tables",
        "to other nodes  1.50 copies per token",
        "rebalances      3 accepted",
        "moved           1,234 slots, 0.00 GB to other ranks",
    ):
        assert part in out
    assert max(map(len, out.splitlines())) <= 80
    answer = json.loads(call("watch", url, "--json")[1])
    assert answer["qwen"]["balancedness"] == [0.8, 0.9, 0.95]


def test_it_goes_on_until_it_is_interrupted(
    call: Callable[..., Answer], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops answering: the last reading stays, with the reason; Ctrl-C ends it with exit code 0."""
    turns: list[float] = []

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        Handler.left = 0 if len(turns) == 3 else Handler.left
        if len(turns) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    code, out, err = call("watch", url, "--every", "0.5")
    assert (code, err, turns) == (0, "", [0.5] * 5)
    assert "HTTP status 503" in out
    assert "planned 0.97  ▇▇▇" in out  # three readings, then none


def test_a_server_that_is_not_there_is_one_line(call: Callable[..., Answer]) -> None:
    code, out, err = call("watch", "http://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert err.startswith("eplb-plugin: http://127.0.0.1:9/metrics: no answer (")
    assert err.count("\n") == 1
