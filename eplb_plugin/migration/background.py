"""The threads in which a migration is planned and staged, and the order of their device work and the engine's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_NICENESS = 10  # of planning, added to the process's


class Background:
    """A thread for plans and one for rows, never busy at once, with a stream of their own on the layers' device.

    Planning is arithmetic, and may share a core with the engine (which pins its threads on CPUs): it gives way, or the
    steps beside it take up to twice as long. Rows do not wait: other ranks do for them.

    What is submitted begins after all that the caller's stream had been given by then (weights that were just put in
    place, staging memory that was just read), and when its future is done, so is its work on the device. Neither stream
    ever waits for the other on the device: the thread does, on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = None if device.type == "cpu" else torch.Stream(device)
        self._rows = ThreadPoolExecutor(1, "eplb-migration")
        self._plans = ThreadPoolExecutor(1, "eplb-planning", _give_way)

    def plan(self, action: Callable[..., T], *args: Any) -> Future[T]:
        return self._submit(self._plans, action, *args)

    def stage(self, action: Callable[..., T], *args: Any) -> Future[T]:
        return self._submit(self._rows, action, *args)

    def _submit(self, thread: ThreadPoolExecutor, action: Callable[..., T], *args: Any) -> Future[T]:
        if self._stream is None:
            return thread.submit(action, *args)
        launched = torch.accelerator.current_stream(self._device).record_event()
        return thread.submit(self._after, launched, action, *args)

    def _after(self, launched: torch.Event, action: Callable[..., T], *args: Any) -> T:
        assert self._stream is not None
        with self._stream:  # the device too is a thread's own
            launched.synchronize()
            result = action(*args)
            self._stream.synchronize()
        return result


def _give_way() -> None:
    if sys.platform == "linux":  # where niceness is a thread's own
        with contextlib.suppress(OSError):  # a sandbox may forbid it; it is not needed for anything to be right
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
