"""Fill staging rows: read local experts, exchange rows with other ranks round by round, check every seal.

`stage` hands all of that to the device or does it on the host, whichever the rows pass through; `settle` waits, in a
thread of the plugin's own, until it is over, and says what was wrong. Whatever fails changes no weight. A rank that
cannot read or verify goes on exchanging messages, so that no other rank waits for it, and says so in the vote; only
broken wires (a dead or silent peer) end the exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..devices import host_memory, sent
from ..errors import PluginError
from ..jit import Array
from .background import Background
from .checksum import broken, seal
from .errands import Errand, Errands, Numbers
from .layout import ExpertRows
from .schedule import Schedule
from .wires.base import Pending, Wires

_PAUSE = 1e-3  # seconds between two questions whether the device is done


@dataclass(frozen=True, eq=False)
class StagedLayer:
    """What is ready to be written: rows [n, row_bytes] go to `slots`; experts twice on a rank also to `more`."""

    layer: int
    slots: torch.Tensor
    rows: torch.Tensor
    more: torch.Tensor
    more_rows: torch.Tensor

    def write(self, tensors: ExpertRows) -> None:
        rows = sent(self.rows, tensors.device)
        tensors.write(self.slots, rows)
        if len(self.more):
            tensors.write(self.more, rows.index_select(0, self.more_rows))


@dataclass(eq=False)
class Staged:
    """A batch, perhaps still on its way. broken: [n] of the received rows `moves`, whether the seal is; on the host as
    soon as `done` says so (None: it is). handed: when the device had been given all of it.
    """

    layers: list[StagedLayer] = field(default_factory=list)
    moves: list[Array] = field(default_factory=list)
    broken: list[torch.Tensor] = field(default_factory=list)
    done: torch.Event | None = None
    handed: float = 0.0


class Transfer:
    """One migration of one rank. `serial` tells its messages from those of earlier ones."""

    def __init__(self, plan: Schedule, layers: Sequence[ExpertRows], wires: Wires, serial: int) -> None:
        self.plan, self.layers, self.wires = plan, layers, wires
        self.problem = ""
        self._errands = Errands(plan, wires.rank, serial)

    def filled(self, thread: Background, batch: Sequence[int], half: int) -> Future[list[StagedLayer]]:
        """These layers, staged: all of it by the thread, or given to the device here and waited for there."""
        if self.wires.background:
            return thread.beside(lambda: self.settle(self.stage(batch, half)))
        return thread.submit(self.settle, self.stage(batch, half))

    @torch.inference_mode()
    def stage(self, batch: Sequence[int], half: int) -> Staged:
        """Fill the staging rows of these layers. Never raises: `problem` says what went wrong first."""
        staged = Staged()
        try:
            numbers = Numbers()
            errands = [self._errands.errand(layer, self._rows_per_message(layer), numbers) for layer in batch]
            host = torch.from_numpy(numbers.all())
            for_layers, for_rows = (sent(host, one) for one in (self.layers[0].device, self.wires.staging.device))
            begin = 0
            for errand in errands:
                size = self.layers[errand.layer].row_bytes
                rows = self.wires.staging[half, begin : begin + errand.count * size].view(errand.count, size)
                begin += errand.count * size
                self._fill(errand, rows, for_layers, for_rows)
                self._attempt("checking", self._verify, errand, rows, for_rows[errand.identity], staged)
                slots, more, more_rows = (for_layers[one] for one in (errand.slots, errand.more, errand.more_rows))
                staged.layers.append(StagedLayer(errand.layer, slots, rows, more, more_rows))
            self._attempt("checking", self._report, staged)
        except Exception as error:
            self._note("staging", error)
            self._attempt("staging", self.wires.give_up)
        return staged

    def settle(self, staged: Staged) -> list[StagedLayer]:
        """Wait until the device has done what it was given for a batch, and look at the seals. Never raises."""
        self._attempt("exchanging rows", self._await, staged)
        if self.wires.intact:
            self._attempt("checking", self._judge, staged)
        return staged.layers

    def _await(self, staged: Staged) -> None:
        seconds = self.wires.deadline.total_seconds()
        while staged.done is not None and not staged.done.query():
            if time.monotonic() > staged.handed + seconds:
                self.wires.give_up()
                raise TimeoutError(f"the device is not done in {seconds} s")
            time.sleep(_PAUSE)

    def _rows_per_message(self, layer: int) -> int:
        return self.wires.message_bytes // self.layers[layer].row_bytes

    def _fill(self, errand: Errand, rows: torch.Tensor, for_layers: torch.Tensor, for_rows: torch.Tensor) -> None:
        tensors, buffers = self.layers[errand.layer], self.wires.outgoing
        if errand.own:
            self._attempt("reading", tensors.read, for_layers[errand.own_slots], rows[: errand.own])
        flight: Sequence[Pending] = []
        for turn, exchange in enumerate(errand.exchanges):
            if not self.wires.intact:
                return
            if exchange.relayed or len(buffers) == 1:  # what is passed on must have arrived, one buffer must be free
                self._on_wires(self.wires.wait, flight)
                flight = []
            buffer = buffers[turn % len(buffers), : exchange.count * tensors.row_bytes]
            if exchange.count:
                message, identity = buffer.view(exchange.count, -1), for_rows[exchange.identity]
                if exchange.relayed:  # with the seal of the first sender
                    self._attempt("reading", self._pass_on, rows, for_rows[exchange.rows], message)
                else:
                    self._attempt("reading", self._pack, tensors, for_layers[exchange.rows], message, identity)
            self._on_wires(self.wires.wait, flight)  # packed before: the only time that a rank has nothing in flight
            flight = self._on_wires(
                self.wires.start, exchange.peer, buffer, rows[exchange.first : exchange.last].flatten()
            )
        self._on_wires(self.wires.wait, flight)

    def _pack(self, tensors: ExpertRows, slots: torch.Tensor, message: torch.Tensor, identity: torch.Tensor) -> None:
        tensors.read(slots, message)
        seal(message, identity)

    def _pass_on(self, rows: torch.Tensor, relayed: torch.Tensor, message: torch.Tensor) -> None:
        torch.index_select(rows, 0, relayed, out=message)

    def _verify(self, errand: Errand, rows: torch.Tensor, identity: torch.Tensor, staged: Staged) -> None:
        if len(errand.received) and self.wires.intact:
            staged.broken.append(broken(rows[errand.own :], identity))
            staged.moves.append(errand.received)

    def _report(self, staged: Staged) -> None:
        """The last that the device is given for a batch."""
        device = self.layers[0].device
        found = torch.cat(staged.broken) if staged.broken else torch.zeros(0, dtype=torch.bool, device="cpu")
        if found.device.type != "cpu":
            host = host_memory(len(found), dtype=torch.bool, device=device)
            found = host.copy_(found, non_blocking=True)
        staged.broken, staged.handed = [found], time.monotonic()
        if device.type != "cpu":
            staged.done = torch.accelerator.current_stream(device).record_event()

    def _judge(self, staged: Staged) -> None:
        for found in staged.broken:
            wrong = np.flatnonzero(found.numpy())
            if len(wrong):
                moves = np.concatenate(staged.moves)
                first = moves[wrong[0]]
                raise PluginError(
                    f"layer {self.plan.layer[first]}: {len(wrong)} of {len(moves)} rows differ from their source, "
                    f"first expert {self.plan.expert[first]} from rank {self.plan.source[first]}"
                )

    def _attempt(self, what: str, action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            self._note(what, error)

    def _on_wires(self, action: Callable[..., Sequence[Pending] | None], *args: Any) -> Sequence[Pending]:
        try:
            return (self.wires.intact and action(*args)) or []
        except Exception as error:
            self._note("exchanging rows", error)
            self._attempt("exchanging rows", self.wires.give_up)
            return []

    def _note(self, what: str, error: Exception) -> None:
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        self.problem = self.problem or f"{what}: {' '.join(text.split())}"
