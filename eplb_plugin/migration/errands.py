"""What one rank has to do for one layer of a migration, in the order in which it does it. Pure: no tensor, no group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..jit import Array
from .routes import LOCAL
from .schedule import Schedule


class Numbers:
    """int64 numbers of a whole batch, collected first so that they reach a device together."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._end = 0

    def keep(self, values: Array) -> slice:
        """Where they will be in `all`."""
        begin, self._end = self._end, self._end + len(values)
        self._parts.append(values.astype(np.int64))
        return slice(begin, self._end)

    def all(self) -> NDArray[np.int64]:
        return np.concatenate(self._parts)


@dataclass(frozen=True)
class Exchange:
    """One message each way. count: rows sent; rows: their slots on this rank, or staging rows if they are relayed;
    identity: what they are; first, last: the staging rows received.
    """

    peer: int
    relayed: bool
    count: int
    rows: slice
    identity: slice
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Errand:
    """The first `own` of `count` staging rows come from this rank's slots `own_slots`, the others are `received` moves
    that are `identity`. Then all rows go to `slots`, and rows `more_rows` to `more` too: experts twice on this rank.
    """

    layer: int
    count: int
    own: int
    own_slots: slice
    exchanges: list[Exchange]
    received: Array
    identity: slice
    slots: slice
    more: slice
    more_rows: slice


class Errands:
    """Those of one rank. serial: tells the rows of this migration from those of earlier ones."""

    def __init__(self, plan: Schedule, rank: int, serial: int) -> None:
        self._plan, self._rank, self._serial = plan, rank, serial
        self._received = _by_layer(plan, np.flatnonzero(plan.target == rank))
        sent = np.flatnonzero((plan.source == rank) & (plan.round != LOCAL))
        self._sent = _by_layer(plan, sent[np.lexsort((plan.row[sent], plan.round[sent], plan.layer[sent]))])

    def errand(self, layer: int, rows_per_message: int, numbers: Numbers) -> Errand:
        plan, received = self._plan, self._received[layer]
        own = int((plan.round[received] == LOCAL).sum())
        size = plan.topology.slots_per_rank
        row = plan.row_of_slot[layer, self._rank * size : (self._rank + 1) * size]
        slots = np.flatnonzero(row >= 0)
        _, first = np.unique(row[slots], return_index=True)  # every row has a slot: these are in the order of rows
        more = np.delete(slots, first)
        return Errand(
            layer=layer,
            count=len(received),
            own=own,
            own_slots=numbers.keep(plan.slot[received[:own]]),
            exchanges=list(self._exchanges(layer, rows_per_message, numbers)),
            received=received[own:],
            identity=numbers.keep(self._identity(layer, received[own:])),
            slots=numbers.keep(slots[first]),
            more=numbers.keep(more),
            more_rows=numbers.keep(row[more]),
        )

    def _exchanges(self, layer: int, size: int, numbers: Numbers) -> Iterator[Exchange]:
        """In the order of rounds, cut into messages that fit the send buffer."""
        plan, sent, received = self._plan, self._sent[layer], self._received[layer]
        for turn in np.unique(np.concatenate([plan.round[sent], plan.round[received]])):
            if turn == LOCAL:
                continue
            out = sent[plan.round[sent] == turn]
            into = np.flatnonzero(plan.round[received] == turn)
            peer = plan.target[out[0]] if len(out) else plan.source[received[into[0]]]
            first = into[0] if len(into) else 0
            for begin in range(0, max(len(out), len(into)), size):
                moves = out[begin : begin + size]
                relayed = bool(len(moves)) and bool(plan.slot[moves[0]] < 0)
                rows = numbers.keep((plan.relay_row if relayed else plan.slot)[moves])
                identity = numbers.keep(self._identity(layer, moves))
                ends = (int(first + min(place, len(into))) for place in (begin, begin + size))
                yield Exchange(int(peer), relayed, len(moves), rows, identity, *ends)

    def _identity(self, layer: int, moves: Array) -> NDArray[np.int64]:
        plan = self._plan
        base = (self._serial * len(plan.row_of_slot) + layer) * plan.row_of_slot.shape[1]
        return base + plan.expert[moves].astype(np.int64)


def _by_layer(plan: Schedule, moves: Array) -> list[Array]:
    """moves, sorted by layer -> those of each layer."""
    return np.split(moves, np.searchsorted(plan.layer[moves], np.arange(1, len(plan.row_of_slot))))
