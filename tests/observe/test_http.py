"""Asking a server: answers as they are, and every failure in one line that names the address."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe import http
from eplb_plugin.observe.http import ask, ask_json
from http_answers import answering


class Handler(BaseHTTPRequestHandler):
    """Says what it was asked; refuses those without the key."""

    key: ClassVar[str | None] = None
    body: ClassVar[bytes] = b"{}"

    def do_GET(self) -> None:
        allowed = self.key is None or self.headers.get("Authorization") == f"Bearer {self.key}"
        self.send_response(401 if not allowed else 404 if self.path == "/nothing" else 200)
        self.end_headers()
        self.wfile.write(self.body if self.path != "/path" else self.path.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.key, Handler.body = None, b"{}"
    with answering(Handler) as address:
        yield address


def test_answers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bytes; an address may end in a slash; with the key where the server wants one; no more than may be kept."""
    assert ask(f"{url}/", "/path") == b"/path"
    Handler.key = "secret"
    assert ask(url, "/path", "secret") == b"/path"
    monkeypatch.setattr(http, "LARGEST", 3)
    assert ask(url, "/path", "secret") == b"/pa"


@pytest.mark.parametrize(
    ("body", "found"),
    [(b'{"a": 1}', {"a": 1}), (b"[1]", None), (b"no json", None), (b"[" * 10_000, None), (b"\xff", None)],
)
def test_json(url: str, body: bytes, found: object) -> None:
    """An object, or None for whatever else comes."""
    Handler.body = body
    assert ask_json(url, "/x") == found


def test_a_server_that_says_no(url: str) -> None:
    """With its status, and what may help."""
    with pytest.raises(PluginError, match=f"^{url}/nothing: found HTTP status 404, expected 200; fix: check the addr"):
        ask_json(url, "/nothing")
    Handler.key = "secret"
    with pytest.raises(PluginError, match="HTTP status 401, expected 200; fix: pass --api-key"):
        ask(url, "/path", "wrong")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://[", "http://a b", "https://127.0.0.1:9"])
def test_no_answer(address: str) -> None:
    """No server there, or no address."""
    with pytest.raises(PluginError, match=": no answer") as caught:
        ask(address, "/x")
    assert str(caught.value).startswith(f"{address}/x: ")


@pytest.mark.parametrize("address", ["localhost:1", "file:///etc/passwd", ""])
def test_only_http_is_asked(address: str) -> None:
    """Above all no file of this machine."""
    with pytest.raises(PluginError, match="--url: found"):
        ask(address, "")
