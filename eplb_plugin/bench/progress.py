"""What a long command says while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console


class Progress:
    """One line that changes while something runs, and one that stays when it is done."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else 120)
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:4.0f} s[/]  {text}", highlight=False)

    def running(self, what: str) -> Callable[[str], None]:
        """A callback for work that reports now and then; speaks every ten seconds, so that a log stays short."""
        last = time.monotonic()

        def report(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 10:
                last = time.monotonic()
                self.say(f"[dim]{what}: {text}[/]")

        return report
