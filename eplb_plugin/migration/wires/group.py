"""Rows sent and received over a process group of torch.distributed: gloo, NCCL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..layout import ExpertRows
from ..limits import Budget
from .base import Pending, Wires


class GroupWires(Wires):
    """Over gloo through host memory, in the background. Over another backend (NCCL) on the layers' device and the
    engine's stream: beside kernels that communicate themselves, a second stream can deadlock.
    """

    def __init__(self, group: dist.ProcessGroup, layers: Sequence[ExpertRows], budget: Budget) -> None:
        backend = dist.get_backend(group)
        gloo = backend == "gloo"
        device = torch.device("cpu") if gloo else layers[0].device
        super().__init__(group, layers, budget, name=backend, background=gloo, device=device)
        self._group = group

    def start(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> Sequence[Pending]:
        sides = ((dist.isend, sent), (dist.irecv, received))
        ops = [dist.P2POp(how, rows, group=self._group, group_peer=peer) for how, rows in sides if len(rows)]
        works: list[dist.Work] = dist.batch_isend_irecv(ops)
        return works

    def wait(self, flight: Sequence[Pending]) -> None:
        """Over NCCL the stream waits: given a time, NCCL's `wait` would ask every millisecond, on the host."""
        if self.background:
            super().wait(flight)
        else:
            works: Sequence[Any] = flight
            for work in works:
                work.wait()

    def give_up(self) -> None:
        """The engine's stream stands behind a message that will not come: NCCL lets go of it."""
        super().give_up()
        if not self.background:
            self._group.abort()

    def meet(self) -> None:
        """After what all ranks enter: in a group's first operation NCCL knows no others."""
        dist.all_reduce(torch.zeros(1, device=self.staging.device), group=self._group)
        super().meet()
