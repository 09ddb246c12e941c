"""A real headless Chromium, driven over its DevTools pipe: what a page logs, requests, and answers."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 90.0


@dataclass
class Visit:
    """problems: console errors and uncaught exceptions; requests: every URL asked for; answer: of the script."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answer: Any = None


@dataclass(frozen=True)
class Screen:
    """width: in CSS pixels; dark: what the reader's system asks for; picture: where to write the whole page as .png."""

    width: int = 1300
    dark: bool = False
    picture: Path | None = None


def visit(page: Path, script: str, profile: Path, screen: Screen | None = None) -> Visit:
    """Open a file, wait until it is loaded, and evaluate `script` in it."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    given = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (theirs_in, theirs_out)]  # clear of 3 and 4, Chromium's
    words = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", f'exec 3<&{given[0]} 4>&{given[1]}; exec "$0" "$@"', *words],
        pass_fds=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for one in (theirs_in, theirs_out, *given):
        os.close(one)
    try:
        return _Browser(ours_in, ours_out).visit(page, script, screen or Screen())
    finally:
        process.kill()
        process.wait()
        os.close(ours_in)
        os.close(ours_out)


class _Browser:
    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer = read, write, b""
        self._number = 0
        self._session: str | None = None
        self._seen = Visit()
        self._loaded = False
        self._end = time.monotonic() + SECONDS

    def visit(self, page: Path, script: str, screen: Screen) -> Visit:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if screen.dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": screen.width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._note(self._message())
        made = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        self._seen.answer = made["result"].get("value")
        if screen.picture is not None:
            taken = self._call("Page.captureScreenshot", captureBeyondViewport=True)
            screen.picture.write_bytes(base64.b64decode(taken["data"]))
        return self._seen

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(self._end - time.monotonic(), 0.0))
            assert ready, f"Chromium said nothing for {SECONDS:.0f} s"
            data = os.read(self._read, 1 << 16)
            assert data, "Chromium ended"
            self._buffer += data
        first, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(first)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self._seen.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self._seen.problems.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self._seen.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self._seen.problems.append(str(params["args"]))
