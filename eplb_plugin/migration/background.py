"""The thread in which a migration is planned, staged and waited for: after which of the engine's work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ..devices import work_on

T = TypeVar("T")


class Background:
    """One thread, which waits for the device so that the engine's thread need not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = None if device.type == "cpu" else torch.Stream(device)
        self._thread = ThreadPoolExecutor(1, "eplb-migration", work_on, (device,))

    def submit(self, action: Callable[..., T], *args: Any) -> Future[T]:
        """Without work on the device, or with some that somebody else gave it."""
        return self._thread.submit(action, *args)

    def beside(self, action: Callable[..., T], *args: Any) -> Future[T]:
        """With work on a stream of its own: begins after all that the caller's stream had been given by then (weights
        that were just put in place, staging memory that was just read), and is over when the future is done.

        Neither stream ever waits for the other on the device: the thread does, on the host.
        """
        if self._stream is None:
            return self._thread.submit(action, *args)
        launched = torch.accelerator.current_stream(self._device).record_event()
        return self._thread.submit(self._after, launched, action, *args)

    def _after(self, launched: torch.Event, action: Callable[..., T], *args: Any) -> T:
        assert self._stream is not None
        with self._stream:
            launched.synchronize()
            result = action(*args)
            self._stream.synchronize()
        return result
