"""What rows travel on, one message each way with a peer at a time, and the memory that they pass through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .budget import Budget
from .layout import ALIGNMENT, ExpertRows


class Pending(Protocol):
    """A message on its way; a `torch.distributed.Work` is one."""

    def wait(self, timeout: timedelta, /) -> Any:
        """Raises RuntimeError or TimeoutError if it has not arrived in time."""


class Wires(ABC):
    """One for the life of a model. Once `intact` is false nothing travels on it again.

    group: the ranks, in the order of the topology; name: for the log. background: whether messages may travel beside
    whatever the engine's stream does; then a batch is staged while the one before is committed, in two halves of
    staging memory, else there is one. Each holds a whole layer of this rank. The two buffers for outgoing messages
    have `budget.message_bytes` (at least one expert, at most a layer).
    """

    def __init__(
        self, group: dist.ProcessGroup, layers: Sequence[ExpertRows], budget: Budget,
        *, name: str, background: bool, device: torch.device,
    ) -> None:  # fmt: skip
        self.rank, self.name, self.background = dist.get_rank(group), name, background
        self.deadline = timedelta(seconds=budget.transfer_seconds)
        widest = max(layer.row_bytes for layer in layers)
        self.half_bytes = widest * layers[0].num_slots
        aligned = -(-budget.message_bytes // ALIGNMENT) * ALIGNMENT
        self.message_bytes = min(max(aligned, widest), self.half_bytes)
        self.halves = 2 if background else 1
        self.staging = torch.zeros(self.halves, self.half_bytes, dtype=torch.uint8, device=device)
        self.outgoing = torch.zeros(2, self.message_bytes, dtype=torch.uint8, device=device)
        self.intact = True

    @property
    def nbytes(self) -> int:
        return self.staging.numel() + self.outgoing.numel()

    @abstractmethod
    def start(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> Sequence[Pending]:
        """Begin to exchange one message with a peer, which does the same; either may be empty.

        sent: bytes in `outgoing`, received: in `staging`; both are in use until they have been waited for.
        """

    def wait(self, flight: Sequence[Pending]) -> None:
        """Raises RuntimeError or TimeoutError if it does not arrive before the deadline."""
        for message in flight:
            message.wait(self.deadline)
