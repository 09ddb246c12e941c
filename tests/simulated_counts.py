"""What a simulated accelerator counts, what a capture forbids, and whether it still runs."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import torch


class CaptureError(RuntimeError):
    """What would break the capture of a graph."""


class Counts:
    """What happened since the last `reset`, over all threads.

    host_reads: values that the host asked for, by operation; host_waits: for events and streams; pageable, pinned:
    copies between host and device that wait for the device, and that do not; launches: operations on the device;
    allocations: of device memory; allocated, peak: bytes of it that live now, and lived at most.
    faults: what a GPU would have answered with wrong values. waiting: the threads that waited, and how often.
    """

    def __init__(self) -> None:
        self.allocated = 0
        self.faults: list[str] = []
        self.reset()

    def reset(self) -> None:
        self.host_reads: Counter[str] = Counter()
        self.host_waits = self.pageable = self.pinned = self.allocations = 0
        self.waiting: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.addresses: list[tuple[str, tuple[int, ...]]] = []  # of every launch: its operation and tensors
        self.peak = self.allocated

    @property
    def stops(self) -> int:
        """How often the host waited for the device, whatever for."""
        return sum(self.host_reads.values()) + self.host_waits + self.pageable

    def waited(self) -> None:
        self.waiting[threading.current_thread().name] += 1


counts = Counts()
thread = threading.local()
_capturing = False
_stopped = False


def allocated() -> None:
    if _capturing and not getattr(thread, "pool", False):
        raise CaptureError("memory was allocated")


def asked() -> bool:
    """Of an event. Whether the device still goes on."""
    if _capturing:
        raise CaptureError("an event was asked")
    return not _stopped


def read(name: str) -> None:
    if _capturing:
        raise CaptureError(f"{name}: the host read a value")
    counts.host_reads[name] += 1
    counts.waited()


def host_copy(host: torch.Tensor, *, pinned_host: bool, why: str) -> None:
    if pinned_host:
        counts.pinned += 1
        return
    if _capturing:
        raise CaptureError(f"{why}: a copy between the device and {list(host.shape)} on the host that waits")
    counts.pageable += 1
    counts.waited()


def wait(what: str) -> None:
    if _capturing:
        raise CaptureError(f"the host waited for a {what}")
    counts.host_waits += 1
    counts.waited()
    if _stopped:
        raise RuntimeError(f"the host waits for a {what} that never comes: the device has stopped")


def check_thread(what: str) -> None:
    """A thread in which no device was set makes a context on device 0, whatever device the process serves with."""
    if threading.current_thread() is not threading.main_thread() and not getattr(thread, "has_device", False):
        counts.faults.append(f"{what}: thread {threading.current_thread().name} has not set its device")


def stop(stopped: bool = True) -> None:
    """The device does nothing more of what it was given, as behind a message that does not come; or goes on."""
    global _stopped
    _stopped = stopped


def has_stopped() -> bool:
    return _stopped


@contextlib.contextmanager
def capturing(pool: bool = False) -> Iterator[None]:
    """As a graph is captured: host reads, waits, blocking copies and allocations raise CaptureError.

    pool: memory comes from the graph's own, so that this thread may allocate.
    """
    global _capturing
    _capturing, thread.pool = True, pool
    try:
        yield
    finally:
        _capturing = thread.pool = False
