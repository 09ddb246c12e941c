"""Between rebalances: windows end, shares are solved beside the engine's steps, all ranks switch on the same one.

New shares move no bytes, so they may follow the traffic more often than experts do. Where they no longer do, because
experts lie badly for it, the next rebalance begins early. What is collective runs in a thread of its own on a group
that the engine's threads do not use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from ..devices import work_on
from ..recording.load import Arrived, take_load
from .rebalancer import Rebalancer, Staging, SwitchWeights

# engine steps after a window's end, or as many as it has: long enough that nobody waits for the solver
SWITCH_AFTER = 32
Solved = tuple[SwitchWeights | None, bool]  # as `Rebalancer.resplit` returns


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
        self._min_steps = rebalancer.config.rebalance.min_steps
        self._running: _Solving | None = None
        self._due = 0

    def records(self, steps_left: int) -> bool:
        """Whether a step belongs to a window; steps_left: after it, until the next rebalance begins."""
        return steps_left % self._between < self._entry.window_steps

    def end_step(self, steps_left: int, settled: bool) -> bool:
        """A step is over. settled: no expert moves, and all lie as planned; else shares wait for another window.

        Returns whether, on all ranks, the next rebalance begins earlier: when its window is recorded, from now on.
        """
        entry = self._entry
        assert entry.recorder is not None
        if self._running is not None:
            self._due -= 1
            if self._due == 0 and self._switch():
                entry.recorder.reset()
                return True
        if steps_left <= 0 or steps_left % self._between:
            return False
        passed = entry.step_interval - steps_left
        whole = passed >= entry.window_steps
        if not settled or not whole or entry.plan is None or not entry.plan.has_weights:
            entry.recorder.reset()
            return False
        self._due = max(1, min(SWITCH_AFTER, self._between // 2))
        may_begin = passed >= self._min_steps and steps_left - self._due > entry.window_steps
        solve = partial(self._solve, take_load(entry.recorder), may_begin)
        self._running = _Solving(solve, entry.recorder.num_tokens.device)
        return False

    def _solve(self, load: Arrived, may_begin: bool) -> Solved:
        return self._rebalancer.resplit(self._key, load, self._group, self._stage, may_begin)

    def _switch(self) -> bool:
        """Every rank knows the verdict of the same vote, so all switch here or none does. Whether to begin early."""
        assert self._running is not None
        (switch, early), self._running = self._running.found(), None
        if switch is not None:
            switch()
        return early


class _Solving:
    """One call in a thread of its own, which may wait for the device."""

    def __init__(self, solve: Callable[[], Solved], device: torch.device) -> None:
        self._solved: Solved = None, False
        self._error: BaseException | None = None

        def run() -> None:
            try:
                work_on(device)
                self._solved = solve()
            except BaseException as error:  # e.g. a rank has died: for the engine's thread to raise
                self._error = error

        self._thread = threading.Thread(target=run, name="eplb-plugin-resplit", daemon=True)
        self._thread.start()

    def found(self) -> Solved:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._solved
