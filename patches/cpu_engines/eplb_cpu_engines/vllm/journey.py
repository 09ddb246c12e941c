"""The way of one layer's tokens to the ranks of their experts and back, over links; it knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .links import Links


@dataclass(frozen=True)
class Seat:
    """A rank's place: `index` inside `node`. Ranks with the same index on all nodes carry what crosses."""

    rank: int
    num_ranks: int
    ranks_per_node: int

    def __post_init__(self) -> None:
        if self.ranks_per_node < 1 or self.num_ranks % self.ranks_per_node:
            raise ValueError(
                f"found {self.ranks_per_node} ranks per node for {self.num_ranks} ranks, expected a divisor: change "
                "EPLB_CPU_RANKS_PER_NODE"
            )

    @property
    def across(self) -> list[int]:
        """The ranks with this index, one per node."""
        return list(range(self.rank % self.ranks_per_node, self.num_ranks, self.ranks_per_node))

    @property
    def inside(self) -> list[int]:
        """The ranks of this node."""
        first = self.rank - self.rank % self.ranks_per_node
        return list(range(first, first + self.ranks_per_node))


class Journey:
    """The way of one layer's tokens in one step: across nodes, inside the node, and back the same way."""

    def __init__(self, seat: Seat, links: Links, num_experts: int) -> None:
        self.seat, self.slots = seat, num_experts // seat.num_ranks
        self._across = _Hop(seat.rank, seat.across, links)
        self._inside = _Hop(seat.rank, seat.inside, links)

    def dispatch(
        self, hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden: [tokens, hidden]; weights, ids: [tokens, k]; returns the same of the tokens to compute here."""
        width, kind = hidden.shape[1] * hidden.element_size(), ids.dtype
        parts = (hidden, weights.float(), ids.int())
        rows = torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)
        per_node = self.slots * self.seat.ranks_per_node
        rows = self._across.out(rows, _visits(ids, per_node, range(len(self.seat.across))))
        rows = self._inside.out(rows, _visits(_ids(rows, width, ids.shape[1]), self.slots, self.seat.inside))
        arrived = _ids(rows, width, ids.shape[1])
        return (
            rows[:, :width].contiguous().view(hidden.dtype),
            rows[:, width : width + 4 * ids.shape[1]].contiguous().view(torch.float32),
            arrived.to(kind),
        )

    def combine(self, outputs: torch.Tensor, total: torch.Tensor) -> None:
        """outputs: [arrived, hidden]; writes every token's sum to total: [tokens, hidden]."""
        total.copy_(self._across.back(self._inside.back(outputs)))


class _Hop:
    """Rows to some ranks and their outputs back; each row to as many of them as want it, in their order."""

    def __init__(self, rank: int, ranks: Sequence[int], links: Links) -> None:
        self.rank, self.ranks, self.links = rank, ranks, links
        self._sent: dict[int, torch.Tensor] = {}  # per rank, which rows
        self._received: dict[int, int] = {}  # per rank, how many
        self._rows = 0

    def out(self, rows: torch.Tensor, visits: torch.Tensor) -> torch.Tensor:
        """rows: [n, bytes]; visits: [n, ranks] bool; returns the rows for this rank, of all ranks in order."""
        self._rows = len(rows)
        self._sent = {rank: visits[:, at].nonzero().squeeze(1) for at, rank in enumerate(self.ranks)}
        others = [rank for rank in self.ranks if rank != self.rank]
        # a message without rows is its size alone: the other side cannot know that there is none
        messages = self.links.exchange({rank: _bytes(rows[self._sent[rank]]) for rank in others}, others)
        parts = [
            rows[self._sent[rank]] if rank == self.rank else _tensor(messages[rank], rows.dtype, rows.shape[1])
            for rank in self.ranks
        ]
        self._received = {rank: len(part) for rank, part in zip(self.ranks, parts, strict=True)}
        return torch.cat(parts)

    def back(self, outputs: torch.Tensor) -> torch.Tensor:
        """outputs: [received, hidden]; returns each sent row's sum over the ranks it went to: [n, hidden]."""
        parts = dict(zip(self.ranks, outputs.split(list(self._received.values())), strict=True))
        # both sides know which rows went where: nothing is sent where none did
        outgoing = {rank: _bytes(part) for rank, part in parts.items() if rank != self.rank and len(part)}
        incoming = [rank for rank in self.ranks if rank != self.rank and len(self._sent[rank])]
        messages = self.links.exchange(outgoing, incoming)
        total = outputs.new_zeros(self._rows, outputs.shape[1])
        for rank in self.ranks:  # in rank order, so that sums are the same every time
            if rank == self.rank:
                total.index_add_(0, self._sent[rank], parts[rank])
            elif rank in messages:
                total.index_add_(0, self._sent[rank], _tensor(messages[rank], outputs.dtype, outputs.shape[1]))
        return total


def _visits(ids: torch.Tensor, slots: int, places: Sequence[int]) -> torch.Tensor:
    """[n, places]: whether an expert of row n is at a place, which holds `slots` of them; -1 = no expert."""
    place = ids.div(slots, rounding_mode="floor")
    return torch.stack([(place == at).any(1) for at in places], 1)


def _ids(rows: torch.Tensor, width: int, k: int) -> torch.Tensor:
    """The ids at the end of packed rows: [n, k] int32."""
    return rows[:, width + 4 * k :].contiguous().view(torch.int32)


def _bytes(rows: torch.Tensor) -> bytes:
    return rows.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(message: bytearray, dtype: torch.dtype, columns: int) -> torch.Tensor:
    if not message:  # frombuffer wants a byte at least
        return torch.empty(0, columns, dtype=dtype)
    return torch.frombuffer(message, dtype=dtype).view(-1, columns)
