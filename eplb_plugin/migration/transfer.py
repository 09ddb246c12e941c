"""Fill staging rows: read local experts, exchange rows with other ranks round by round, check every seal.

Whatever fails here changes no weight. A rank that cannot read or verify goes on exchanging messages, so that no other
rank waits for it, and says so in the vote; only broken wires (a dead or silent peer) end the exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import PluginError
from ..jit import Array
from .layout import ExpertRows
from .routes import LOCAL
from .schedule import Schedule
from .verify import broken, seal
from .wires import Pending, Wires


@dataclass(frozen=True, eq=False)
class Exchange:
    """One message each way. moves: those sent; first, last: the staging rows received."""

    peer: int
    relayed: bool
    moves: Array
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class StagedLayer:
    """What is ready to be written: rows [n, row_bytes] go to `slots`; experts twice on a rank also to `more`."""

    layer: int
    slots: torch.Tensor
    rows: torch.Tensor
    more: torch.Tensor
    more_rows: torch.Tensor

    def write(self, tensors: ExpertRows) -> None:
        tensors.write(self.slots, self.rows)
        if len(self.more):
            tensors.write(self.more, self.rows.index_select(0, self.more_rows))


class Transfer:
    """One migration of one rank. `serial` tells its messages from those of earlier ones."""

    def __init__(self, plan: Schedule, layers: Sequence[ExpertRows], wires: Wires, serial: int) -> None:
        self.plan, self.layers, self.wires, self.serial = plan, layers, wires, serial
        self.problem = ""
        self._received = _by_layer(plan, np.flatnonzero(plan.target == wires.rank))
        sent = np.flatnonzero((plan.source == wires.rank) & (plan.round != LOCAL))
        self._sent = _by_layer(plan, sent[np.lexsort((plan.row[sent], plan.round[sent], plan.layer[sent]))])

    @torch.inference_mode()
    def stage(self, batch: Sequence[int], half: int) -> list[StagedLayer]:
        """Fill the staging rows of these layers. Never raises: `problem` says what went wrong first."""
        staged, begin = [], 0
        for layer in batch:
            count, size = len(self._received[layer]), self.layers[layer].row_bytes
            rows = self.wires.staging[half, begin : begin + count * size].view(count, size)
            begin += count * size
            self._fill(layer, rows)
            self._attempt("checking", self._verify, layer, rows)
            staged.append(self._ready(layer, rows))
        return staged

    def _fill(self, layer: int, rows: torch.Tensor) -> None:
        plan, received = self.plan, self._received[layer]
        own = received[plan.round[received] == LOCAL]
        if len(own):
            self._attempt("reading", self.layers[layer].read, torch.from_numpy(plan.slot[own]).long(), rows[: len(own)])
        flight: Sequence[Pending] = []
        for turn, exchange in enumerate(self._exchanges(layer)):
            if not self.wires.intact:
                return
            if exchange.relayed:  # what is passed on must have arrived
                self._on_wires(self.wires.wait, flight)
                flight = []
            message = self._message(layer, len(exchange.moves), turn % 2)
            if len(message):
                self._attempt("reading", self._pack, layer, exchange, message, rows)
            self._on_wires(self.wires.wait, flight)  # packed before: the only time that a rank has nothing in flight
            flight = self._on_wires(
                self.wires.start, exchange.peer, message.flatten(), rows[exchange.first : exchange.last].flatten()
            )
        self._on_wires(self.wires.wait, flight)

    def _exchanges(self, layer: int) -> Iterator[Exchange]:
        """In the order of rounds, cut into messages that fit the send buffer."""
        plan, sent, received = self.plan, self._sent[layer], self._received[layer]
        size = self.wires.message_bytes // self.layers[layer].row_bytes
        for turn in np.unique(np.concatenate([plan.round[sent], plan.round[received]])):
            if turn == LOCAL:
                continue
            out = sent[plan.round[sent] == turn]
            into = np.flatnonzero(plan.round[received] == turn)
            peer = plan.target[out[0]] if len(out) else plan.source[received[into[0]]]
            first = into[0] if len(into) else 0
            for begin in range(0, max(len(out), len(into)), size):
                moves = out[begin : begin + size]
                relayed = bool(len(moves)) and plan.slot[moves[0]] < 0
                last = min(begin + size, len(into))
                yield Exchange(int(peer), relayed, moves, int(first + min(begin, last)), int(first + last))

    def _message(self, layer: int, count: int, turn: int) -> torch.Tensor:
        size = self.layers[layer].row_bytes
        return self.wires.outgoing[turn, : count * size].view(count, size)

    def _pack(self, layer: int, exchange: Exchange, message: torch.Tensor, rows: torch.Tensor) -> None:
        plan, moves = self.plan, exchange.moves
        if exchange.relayed:  # with the seal of the first sender
            torch.index_select(rows, 0, torch.from_numpy(plan.relay_row[moves]).long().to(rows.device), out=message)
        else:
            self.layers[layer].read(torch.from_numpy(plan.slot[moves]).long(), message)
            seal(message, self._identity(layer, moves))

    def _verify(self, layer: int, rows: torch.Tensor) -> None:
        received = self._received[layer]
        own = int((self.plan.round[received] == LOCAL).sum())
        if own == len(received) or not self.wires.intact:
            return
        wrong = broken(rows[own:], self._identity(layer, received[own:]))
        if wrong:
            move = received[own + wrong[0]]
            raise PluginError(
                f"layer {layer}: {len(wrong)} of {len(rows)} rows differ from their source, first expert "
                f"{self.plan.expert[move]} from rank {self.plan.source[move]}"
            )

    def _identity(self, layer: int, moves: Array) -> torch.Tensor:
        base = (self.serial * len(self.layers) + layer) * self.plan.row_of_slot.shape[1]
        return torch.from_numpy(base + self.plan.expert[moves].astype(np.int64))

    def _ready(self, layer: int, rows: torch.Tensor) -> StagedLayer:
        size = self.layers[layer].num_slots
        row = self.plan.row_of_slot[layer, self.wires.rank * size : (self.wires.rank + 1) * size]
        slots = np.flatnonzero(row >= 0)
        _, first = np.unique(row[slots], return_index=True)  # every row has a slot: these are in the order of rows
        more = np.delete(slots, first)
        parts = [torch.from_numpy(part.astype(np.int64)).to(rows.device) for part in (slots[first], more, row[more])]
        return StagedLayer(layer, parts[0], rows, parts[1], parts[2])

    def _attempt(self, what: str, action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            self._note(what, error)

    def _on_wires(self, action: Callable[..., Sequence[Pending] | None], *args: Any) -> Sequence[Pending]:
        try:
            return (self.wires.intact and action(*args)) or []
        except Exception as error:
            self.wires.intact = False
            self._note("exchanging rows", error)
            return []

    def _note(self, what: str, error: Exception) -> None:
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        self.problem = self.problem or f"{what}: {' '.join(text.split())}"


def _by_layer(plan: Schedule, moves: Array) -> list[Array]:
    """moves, sorted by layer -> those of each layer."""
    return np.split(moves, np.searchsorted(plan.layer[moves], np.arange(1, len(plan.row_of_slot))))
