"""How long the stages of a rebalance take, and a word when one does not end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["snapshot", "plan", "agree", "move"]
STALLED_SECONDS = 120.0  # far above what any stage takes: a rank has ended, or a network is gone


class StageTimer:
    """Of one model. stalled: called, from a thread of its own, with the stage that has lasted `STALLED_SECONDS`."""

    def __init__(self, stalled: Callable[[Stage], None] = lambda stage: None) -> None:
        self.stalled = stalled
        self._seconds: dict[Stage, float] = {}

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        watch = threading.Timer(STALLED_SECONDS, self.stalled, (stage,))
        watch.daemon = True
        watch.start()
        began = time.perf_counter()
        try:
            yield
        finally:
            watch.cancel()
            self._seconds[stage] = time.perf_counter() - began

    def note(self, stage: Stage, seconds: float) -> None:
        """One that is watched elsewhere."""
        self._seconds[stage] = seconds

    def taken(self) -> dict[Stage, float]:
        """Seconds of the stages that ended since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
