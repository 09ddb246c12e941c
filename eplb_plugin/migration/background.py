"""The thread in which a migration is planned and staged, and the order of its device work and the engine's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Background:
    """One thread, with a stream of its own on the layers' device.

    What is submitted begins after all that the caller's stream had been given by then (weights that were just put in
    place, staging memory that was just read), and when its future is done, so is its work on the device. Neither stream
    ever waits for the other on the device: the thread does, on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = None if device.type == "cpu" else torch.Stream(device)
        self._thread = ThreadPoolExecutor(1, "eplb-migration")

    def submit(self, action: Callable[..., T], *args: Any) -> Future[T]:
        if self._stream is None:
            return self._thread.submit(action, *args)
        launched = torch.accelerator.current_stream(self._device).record_event()
        return self._thread.submit(self._after, launched, action, *args)

    def _after(self, launched: torch.Event, action: Callable[..., T], *args: Any) -> T:
        assert self._stream is not None
        with self._stream:  # the device too is a thread's own
            launched.synchronize()
            result = action(*args)
            self._stream.synchronize()
        return result
