"""What the checks found: lines while they run, a table for people, a JSON file for a report of a fault."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..files import write_atomic
from .checks import Result

COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}


class Report:
    """file: written anew after every check, so that a run that dies leaves what it found. quiet: show no progress."""

    def __init__(
        self, command: str, environment: dict[str, Any], checks: Iterable[str], file: Path | None, quiet: bool = False
    ) -> None:
        self.command, self.environment, self.results = command, environment, list[Result]()
        self._pending, self._file = list(checks), file
        self._progress = Console(stderr=True, quiet=quiet)
        self._save()

    def __contains__(self, status: str) -> bool:
        return any(result.status == status for result in self.results)

    def begin(self) -> None:
        """Say which check runs now: the first that is pending."""
        if self._pending:
            self._progress.print(f"… {self._pending[0]} ({len(self._pending)} to go)", highlight=False)

    def add(self, result: Result) -> None:
        self.results.append(result)
        self._pending = self._pending[1:]
        line = f"{result.status} {result.name}, {result.seconds:.1f} s {result.detail}"
        self._progress.print(escape(line.strip()), style=COLOURS[result.status], highlight=False)
        self._save()

    def as_dict(self) -> dict[str, Any]:
        return {
            "command": self.command, "environment": self.environment,
            "checks": [asdict(result) for result in self.results], "not run": self._pending,
        }  # fmt: skip

    def show(self) -> None:
        devices = ", ".join(one["name"] for one in self.environment["devices"]) or "no GPU"
        table = Table("check", "result", "s", "what holds, or is wrong", title=f"{self.command}: {devices}")
        for one in self.results:
            figures = "\n".join(f"{name}: {_shown(value)}" for name, value in one.figures.items())
            said = "\n".join(filter(None, [one.detail or one.proves, figures]))
            table.add_row(one.name, f"[{COLOURS[one.status]}]{one.status}[/]", f"{one.seconds:.1f}", escape(said))
        Console().print(table)

    def _save(self) -> None:
        if self._file is not None:
            write_atomic(self._file, (json.dumps(self.as_dict(), indent=2) + "\n").encode())


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
