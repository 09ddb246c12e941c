"""What a low-latency SEND writes into other ranks' memory and a RECV makes of it; see `reference` for the contract.

Letters in shapes: EL local experts, P ranks * tokens (rows per expert), G hidden / 128 (scales of a row).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from . import fp8
from .heap import HEADER_BYTES, LowLatencyLayout, SymmetricHeap, wait_for_signal


@dataclass(frozen=True)
class Rounds:
    """Which local experts a call is for: round `index` of `count` equal slices."""

    count: int
    index: int

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1

    def experts(self, local: int) -> range:
        size = local // self.count
        return range(self.index * size, (self.index + 1) * size)


@dataclass(frozen=True)
class Transfer:
    """One call: memory, sizes, the buffer it takes (0 or 1), its experts, and how long a RECV waits for a signal."""

    heap: SymmetricHeap
    layout: LowLatencyLayout
    rank: int
    buffer: int
    rounds: Rounds
    seconds: float

    @property
    def local(self) -> int:
        return self.layout.experts // self.layout.ranks

    @property
    def signals(self) -> torch.Tensor:
        """[experts] int32 words of this rank."""
        return self.layout.signals(self.heap.own, self.buffer)

    def clean_next(self) -> None:
        self.layout.signals(self.heap.own, self.buffer ^ 1).zero_()

    def send_rows(self, topk_idx: torch.Tensor) -> None:
        """Rows packed before, and then their numbers, to the ranks of this round's experts."""
        layout, local, experts = self.layout, self.local, self.rounds.experts(self.local)
        place = topk_idx % local
        chosen = (topk_idx >= 0) & (place >= experts.start) & (place < experts.stop)
        token, column = chosen.nonzero(as_tuple=True)
        expert, order = topk_idx[token, column].sort(stable=True)
        token, count = token[order], torch.bincount(expert, minlength=layout.experts)
        nth = torch.arange(len(expert)) - (count.cumsum(0) - count)[expert]
        to = (expert % local * layout.ranks + self.rank) * layout.tokens + nth
        rows = layout.to_send(self.heap.own, self.buffer)
        for rank, memory in enumerate(self.heap.of_rank):
            mine = expert // local == rank
            layout.received(memory, self.buffer, layout.dispatch_bytes)[to[mine]] = rows[token[mine]]
            words = layout.signals(memory, self.buffer)
            for one in experts:  # also for no rows: the word says that nothing more will come
                words[one * layout.ranks + self.rank] = -int(count[rank * local + one]) - 1

    def receive_rows(self, into: Received, so_far: torch.Tensor | None, waited: torch.Tensor | None) -> None:
        """so_far: [EL] rows per expert are added; waited: [ranks] nanoseconds are added."""
        layout, deadline, began = self.layout, time.monotonic() + self.seconds, time.monotonic_ns()
        rows = layout.received(self.heap.own, self.buffer, layout.dispatch_bytes)
        for expert in self.rounds.experts(self.local):
            for source in range(layout.ranks):
                slot = expert * layout.ranks + source
                what = f"dispatch RECV on rank {self.rank} of local expert {expert} from rank {source}"
                n = -wait_for_signal(self.signals, slot, deadline, what) - 1
                into.add(expert, source, rows[slot * layout.tokens : slot * layout.tokens + n])
                if so_far is not None:
                    so_far[expert] += n
                if waited is not None:
                    waited[source] += time.monotonic_ns() - began

    def return_rows(self, x: torch.Tensor, first: int, source: torch.Tensor, ranges: torch.Tensor) -> None:
        """Every row back to the token it came from, and a flag per expert; x begins with local expert `first`."""
        layout = self.layout
        for expert in self.rounds.experts(self.local):
            number = self.rank * self.local + expert
            for rank, memory in enumerate(self.heap.of_rank):
                n, begin = int(ranges[expert, rank]) & 0xFFFFFFFF, int(ranges[expert, rank]) >> 32
                to = number * layout.tokens + source[expert, begin : begin + n].long()
                rows = x[expert - first, begin : begin + n].contiguous().view(torch.uint8)
                layout.received(memory, self.buffer, layout.combine_bytes)[to] = rows
                layout.signals(memory, self.buffer)[number] = 1

    def reduce_rows(
        self, topk_idx: torch.Tensor, topk_weights: torch.Tensor, out: torch.Tensor, waited: torch.Tensor | None
    ) -> None:
        """out: [tokens, hidden], the weighted sum over a token's experts in the order of its top-k, in float32."""
        layout, deadline, began = self.layout, time.monotonic() + self.seconds, time.monotonic_ns()
        for expert in range(layout.experts):
            wait_for_signal(self.signals, expert, deadline, f"combine RECV on rank {self.rank} of expert {expert}")
            if waited is not None:
                waited[expert // self.local] += time.monotonic_ns() - began
        rows = layout.received(self.heap.own, self.buffer, layout.combine_bytes).view(torch.bfloat16)
        total = torch.zeros((len(topk_idx), layout.hidden))
        for column in range(topk_idx.shape[1]):
            chosen = (topk_idx[:, column] >= 0).nonzero().view(-1)
            at = topk_idx[chosen, column] * layout.tokens + chosen
            total[chosen] += rows[at].float() * topk_weights[chosen, column, None].float()
        out.copy_(total)


@dataclass(frozen=True)
class Received:
    """Tensors of one dispatch.

    x: [EL, P, hidden]; scales: [EL, P, G] float32, or four exponents in one [EL, P, G / 4] int32, rows innermost in
    memory; count: [EL]; source: [EL, P] token number at its rank; ranges: [EL, ranks] int64, count in the low and begin
    in the high half. Where nothing was received is NaN, so that a use of it shows.
    """

    x: torch.Tensor
    scales: torch.Tensor | None
    count: torch.Tensor
    source: torch.Tensor
    ranges: torch.Tensor

    @classmethod
    def empty(cls, layout: LowLatencyLayout, use_fp8: bool, use_ue8m0: bool) -> Received:
        local, rows, groups = layout.experts // layout.ranks, layout.ranks * layout.tokens, layout.hidden // fp8.BLOCK
        dtype = torch.float8_e4m3fn if use_fp8 else torch.bfloat16
        x = torch.full((local, rows, layout.hidden * dtype.itemsize), 255, dtype=torch.uint8).view(dtype)
        scales = None
        if use_ue8m0:
            scales = torch.full((local, groups // 4, rows), -1, dtype=torch.int32).transpose(1, 2)
        elif use_fp8:
            scales = torch.full((local, groups, rows), torch.nan).transpose(1, 2)
        source = torch.full((local, rows), -1, dtype=torch.int32)
        count = torch.zeros(local, dtype=torch.int32)
        return cls(x, scales, count, source, torch.zeros((local, layout.ranks), dtype=torch.int64))

    def add(self, expert: int, rank: int, rows: torch.Tensor) -> None:
        """rows: [n, bytes] uint8 that `rank` sent to local expert `expert`."""
        begin, n = int(self.count[expert]), len(rows)
        end, x_end = begin + n, HEADER_BYTES + self.x.shape[2] * self.x.itemsize
        self.x.view(torch.uint8)[expert, begin:end] = rows[:, HEADER_BYTES:x_end]
        self.source[expert, begin:end] = rows[:, :4].contiguous().view(torch.int32).view(-1)
        if self.scales is not None:
            scales = rows[:, x_end : x_end + self.x.shape[2] // fp8.BLOCK * 4].contiguous().view(torch.float32)
            if self.scales.dtype == torch.int32:
                scales = (scales.view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)
            self.scales[expert, begin:end] = scales
        self.ranges[expert, rank] = n | begin << 32
        self.count[expert] = end


def pack_rows(rows: torch.Tensor, x: torch.Tensor, use_fp8: bool, round_scale: bool) -> None:
    """Token number, values and scales of x: [tokens, hidden] into rows: [tokens, bytes] uint8."""
    if not len(x):  # torch does not see tensors without elements as bytes
        return
    rows[:, :4] = torch.arange(len(x), dtype=torch.int32).view(-1, 1).view(torch.uint8)
    parts = fp8.cast(x, round_scale) if use_fp8 else (x,)
    payload = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
    rows[:, HEADER_BYTES : HEADER_BYTES + payload.shape[1]] = payload
