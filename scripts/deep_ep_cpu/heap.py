"""Memory that every rank of a group can write to: what NVSHMEM's symmetric heap is to DeepEP, over mapped files.

A SEND writes into its peer's memory and the peer takes no part in it; a RECV polls words of its own. That makes the
reference keep the protocol itself, not only its results: an order of calls that loses a signal waits for it in vain.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

HEADER_BYTES = 16  # of a dispatched row: the token's number at its source
ALIGNMENT = 128
PATIENT_POLLS = 200


class ProtocolTimeout(RuntimeError):
    """A signal did not come before the deadline, where DeepEP would hang for about 100 s and then trap."""


class SymmetricHeap:
    """of_rank: one [num_bytes] uint8 tensor per rank of `group`, zero at first; writes show in every process."""

    def __init__(self, group: dist.ProcessGroup, num_bytes: int) -> None:
        rank, size = group.rank(), group.size()
        folders: list[str | None] = [None] * size
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        own = tempfile.TemporaryDirectory(prefix="eplb_peo_", dir=shared)
        path = Path(own.name, "heap")
        with path.open("wb") as file:
            file.truncate(num_bytes)
        dist.all_gather_object(folders, own.name, group)
        self.of_rank = []
        for folder in folders:
            with Path(str(folder), "heap").open("r+b") as file:
                self.of_rank.append(torch.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=torch.uint8))
        self.own = self.of_rank[rank]
        dist.barrier(group)  # all have mapped it: the name is no longer needed, the memory lives as long as its users
        own.cleanup()


@dataclass(frozen=True)
class LowLatencyLayout:
    """Where two buffers of signals and rows lie in a heap: it depends on every argument, as in DeepEP.

    So calls with different `experts` on one heap would read each other's rows as signals.
    """

    tokens: int
    hidden: int
    ranks: int
    experts: int

    @property
    def dispatch_bytes(self) -> int:
        """Of one row: BF16, or FP8 with one float32 scale per 128 values."""
        return HEADER_BYTES + max(2 * self.hidden, self.hidden + self.hidden // 128 * 4)

    @property
    def combine_bytes(self) -> int:
        return 2 * self.hidden

    @property
    def signal_bytes(self) -> int:
        return _aligned(self.experts * 4)

    @property
    def received_bytes(self) -> int:
        return _aligned(self.experts * self.tokens * max(self.dispatch_bytes, self.combine_bytes))

    @property
    def total_bytes(self) -> int:
        """For two buffers: signals, rows received, rows to send."""
        return 2 * (self.signal_bytes + self.received_bytes + _aligned(self.tokens * self.dispatch_bytes))

    def signals(self, heap: torch.Tensor, buffer: int) -> torch.Tensor:
        """[experts] int32: 0 until the rows are there."""
        begin = buffer * self.signal_bytes
        return heap[begin : begin + self.experts * 4].view(torch.int32)

    def received(self, heap: torch.Tensor, buffer: int, row_bytes: int) -> torch.Tensor:
        """[experts * tokens, row_bytes] uint8 rows that peers write."""
        begin = 2 * self.signal_bytes + buffer * self.received_bytes
        return heap[begin : begin + self.experts * self.tokens * row_bytes].view(-1, row_bytes)

    def to_send(self, heap: torch.Tensor, buffer: int) -> torch.Tensor:
        """[tokens, dispatch_bytes] uint8 rows of this rank, cast once."""
        begin = 2 * (self.signal_bytes + self.received_bytes) + buffer * _aligned(self.tokens * self.dispatch_bytes)
        return heap[begin : begin + self.tokens * self.dispatch_bytes].view(-1, self.dispatch_bytes)


def wait_for_signal(signals: torch.Tensor, index: int, deadline: float, what: str) -> int:
    """The word at `index` once it is not 0. Raises ProtocolTimeout, which says `what` was waited for."""
    polls = 0
    while not (word := int(signals[index])):
        if time.monotonic() > deadline:
            raise ProtocolTimeout(f"{what}: no signal came before the deadline")
        polls += 1
        time.sleep(0.0 if polls < PATIENT_POLLS else 5e-5)
    return word


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
