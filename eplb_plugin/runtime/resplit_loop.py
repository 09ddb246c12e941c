"""Between rebalances: windows end, shares are solved beside the engine's steps, all ranks switch on the same one.

New shares move no bytes, so they may follow the traffic more often than experts do. What is collective runs in a
thread of its own on a group that the engine's threads do not use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..devices import work_on
from ..recording.load import Arrived, take_load
from .rebalancer import Rebalancer, Staging, SwitchWeights

# engine steps after a window's end, or as many as it has: long enough that nobody waits for the solver
SWITCH_AFTER = 32


class ResplitLoop:
    """Of one model, on one rank. Its methods are called on the same engine steps on every rank.

    group: a CPU group of all ranks, of one model at most. Plans may travel on it too (each group has a socket for every
    rank): a solving thread was waited for when a rebalance begins, and none is started before it is over. stage: makes
    this rank's tables of a plan; what it returns puts them in force.
    """

    def __init__(self, rebalancer: Rebalancer, key: str, group: dist.ProcessGroup, stage: Staging) -> None:
        self._rebalancer, self._key, self._group, self._stage = rebalancer, key, group, stage
        self._entry = rebalancer.entries[key]
        self._between = rebalancer.config.resplit_windows * self._entry.window_steps
        self._running: _Solving | None = None
        self._due = 0

    def records(self, steps_left: int) -> bool:
        """Whether a step belongs to a window; steps_left: after it, until the next rebalance begins."""
        return steps_left % self._between < self._entry.window_steps

    def end_step(self, steps_left: int, settled: bool) -> None:
        """A step is over. settled: no expert moves, and all lie as planned; else shares wait for another window."""
        if self._running is not None:
            self._due -= 1
            if self._due == 0:
                self._switch()
        if steps_left <= 0 or steps_left % self._between:
            return
        entry = self._entry
        assert entry.recorder is not None
        whole = entry.step_interval - steps_left >= entry.window_steps
        if not settled or not whole or entry.plan is None or not entry.plan.has_weights:
            entry.recorder.reset()
            return
        self._due = max(1, min(SWITCH_AFTER, self._between // 2))
        self._running = _Solving(self._solve, take_load(entry.recorder), entry.recorder.num_tokens.device)

    def _solve(self, load: Arrived) -> SwitchWeights | None:
        return self._rebalancer.resplit(self._key, load, self._group, self._stage)

    def _switch(self) -> None:
        """Every rank knows the verdict of the same vote, so all switch here or none does."""
        assert self._running is not None
        switch, self._running = self._running.found(), None
        if switch is not None:
            switch()


class _Solving:
    """One call in a thread of its own, which may wait for the device."""

    def __init__(self, solve: Callable[[Arrived], SwitchWeights | None], load: Arrived, device: torch.device) -> None:
        self._switch: SwitchWeights | None = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                work_on(device)
                self._switch = solve(load)
            except BaseException as error:  # e.g. a rank has died: for the engine's thread to raise
                self._error = error

        self._thread = threading.Thread(target=run, name="eplb-plugin-resplit", daemon=True)
        self._thread.start()

    def found(self) -> SwitchWeights | None:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._switch
