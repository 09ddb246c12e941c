"""What rows travel on, one message each way with a peer at a time, and the memory that they pass through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ...devices import host_memory
from ...errors import mismatch
from ..layout import ExpertRows
from ..limits import Budget, share_memory

_MEETING = timedelta(minutes=10)  # for the first message of a pair: transports are made for it
_GREETING = 4 << 20  # bytes of it: as large a message as it takes to use all that a transport would use


class Pending(Protocol):
    """A message on its way; a `torch.distributed.Work` is one."""

    def wait(self, timeout: timedelta, /) -> Any:
        """Raises RuntimeError or TimeoutError if it has not arrived in time."""


class Wires(ABC):
    """One for the life of a model. Once `intact` is false nothing travels on it again.

    group: the ranks, in the order of the topology; name: for the log. device: of the memory that rows pass through: the
    layers' or the host's. background: whether messages may travel beside whatever the engine's stream does; then a
    batch is staged while the one before is committed, in two halves of staging memory, and a message is packed while
    the one before travels, in two buffers. Else there is one of each. All of them share `budget.staging_bytes`.
    """

    def __init__(
        self, group: dist.ProcessGroup, layers: Sequence[ExpertRows], budget: Budget,
        *, name: str, background: bool, device: torch.device,
    ) -> None:  # fmt: skip
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.name, self.background = name, background
        self.deadline = _MEETING
        self._seconds = budget.transfer_seconds
        widest = max(layer.row_bytes for layer in layers)
        self.halves = 2 if background else 1
        rows = share_memory(budget, widest, layers[0].num_slots, halves=self.halves, buffers=self.halves)
        self.half_bytes, self.message_bytes = (count * widest for count in rows)
        self.staging, self.outgoing = (
            _memory(self.halves, size, device, layers[0].device) for size in (self.half_bytes, self.message_bytes)
        )
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
        """Raises RuntimeError or TimeoutError if it does not arrive before the deadline.

        What is not in the background comes in the order of the stream instead, and nobody waits.
        """
        for message in flight:
            message.wait(self.deadline)

    def give_up(self) -> None:
        """Nothing travels any more."""
        self.intact = False

    def meet(self) -> None:
        """Collective, while the model is loaded: one message with every peer.

        What a transport makes for a pair it makes at their first message: here that takes no time of serving, and its
        memory is seen by whoever measures what is left. Raises PluginError if bytes come out otherwise than they went
        in, or not at all.
        """
        size = min(_GREETING, self.message_bytes)
        sent, received = self.outgoing[0, :size], self.staging[0, :size]
        sent.view(torch.int64).fill_(self.rank)
        wrong = torch.zeros((), dtype=torch.int64, device=received.device)
        try:
            for turn in range(self.size):  # in each, every rank has one peer, itself or another
                peer = (turn - self.rank) % self.size
                if peer != self.rank:
                    self.wait(self.start(peer, sent, received))
                    wrong += (received.view(torch.int64) != peer).sum()
            found = f"{int(wrong)} wrong words" if int(wrong) else ""
        except (RuntimeError, TimeoutError) as error:
            found = " ".join(f"{type(error).__name__}: {error}".split())
        if found:
            what, expected = f"first messages of rank {self.rank} over {self.name}", "every rank's own bytes"
            raise mismatch(what, found=found, expected=expected, fix="repair what the ranks are connected by")
        self.deadline = timedelta(seconds=self._seconds)


def _memory(count: int, size: int, device: torch.device, layers: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return host_memory(count, size, dtype=torch.uint8, device=layers)
    return torch.zeros(count, size, dtype=torch.uint8, device=device)
