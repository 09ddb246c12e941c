"""One engine server in a process group of its own, which is stopped as a group whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .engine import Engine
from .ports import free_port


class ServerError(RuntimeError):
    """The server did not start, or died; carries the end of its log."""


@dataclass(eq=False)
class Server:
    """Context manager around an engine's server; on leaving, no process of its group is left.

    ranks: bound to a core each, and the environment is that of the test bed on CPU; None: nothing of that, for a server
    on GPUs.
    """

    engine: Engine
    model: Path
    arguments: list[str]
    log: Path
    _: KW_ONLY
    ranks: int | None
    environment: Mapping[str, str] | None = None
    start_seconds: float = 400
    progress: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        cores = os.cpu_count() or 1
        on_cpu: dict[str, str] = {}
        if self.ranks is not None:
            on_cpu = self.engine.environment("|".join(str(rank % cores) for rank in range(self.ranks)))
        self.environment = {**os.environ, **on_cpu, **(self.environment or {})}

    def __enter__(self) -> Server:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        command = [*self.engine.serve(self.model, self.port), *self.arguments]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Until /health answers. Raises ServerError if the server ends or does not answer in time."""
        began = time.monotonic()
        while not self.healthy():
            if self.ended() is not None:
                raise ServerError(f"the server ended with exit code {self.ended()} before it was ready\n{self.tail()}")
            if time.monotonic() - began > self.start_seconds:
                raise ServerError(f"the server was not ready after {self.start_seconds:.0f} s\n{self.tail()}")
            self.progress(f"starting, {time.monotonic() - began:.0f} s")
            time.sleep(1)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def ended(self) -> int | None:
        """Exit code of the launcher, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait_ended(self, seconds: float) -> int:
        """Raises ServerError if the launcher still runs after `seconds`."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server still runs after {seconds:.0f} s\n{self.tail()}") from None

    def stop(self, grace_seconds: float = 20) -> None:
        """SIGTERM to the group, then SIGKILL: engines leave children behind on either alone."""
        if self.process is None:
            return
        group = self.process.pid  # start_new_session made the launcher the leader of its group
        for sign, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            _signal_group(group, sign)
            deadline = time.monotonic() + seconds
            while _signal_group(group, 0) and time.monotonic() < deadline:
                self.process.poll()  # reap the launcher, or its zombie keeps the group alive
                time.sleep(0.2)
        self.process.wait()

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def post(self, path: str, body: Mapping[str, Any], timeout: float = 300) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)


def _signal_group(group: int, sign: int) -> bool:
    """Send to every process of the group; False if none is left."""
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return False
    return True
