"""A server that someone else started: it is asked, never started or stopped."""

from __future__ import annotations

from pathlib import Path

from .engine import Engine
from .server import Server


class RunningServer(Server):
    """`Server` at a given address; entering waits a little until /health answers, leaving does nothing."""

    def __init__(self, engine: Engine, model: Path, url: str) -> None:
        super().__init__(engine, model, [], Path("/dev/null"), ranks=None, start_seconds=10)
        self.url = url.rstrip("/")

    def start(self) -> None:
        pass

    def stop(self, grace_seconds: float = 0) -> None:
        pass

    def ended(self) -> int | None:
        return None

    def tail(self, lines: int = 25) -> str:
        return f"{self.url} does not answer"
