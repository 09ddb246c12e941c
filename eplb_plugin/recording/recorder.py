"""Fixed-address device buffers for the routing of one model.

In the forward pass a kernel (`dispatch/kernels.py`) stages the top-k ids of a layer and counts them, in one launch with
static shapes, without a host sync, also inside a captured graph. After a real step the counts of the pass are added to
the window's for all layers at once, outside the graph; after a dummy or profile step they are dropped. So padding and
dummy tokens never reach the counts, in which they would weigh quadratically (co-activation).

Pairs are kept once: smaller expert first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pass(NamedTuple):
    """Where the kernel puts what one layer routes in one pass: rows [max_tokens, K], load [E + 1], pairs [(E + 1)²]."""

    rows: torch.Tensor
    load: torch.Tensor
    pairs: torch.Tensor


class Recorder:
    """Buffers of one model on one rank.

    stage: [ubatches, L, max_tokens, K] int16, -1 = not a real token.
    load: [L, E] int32; coactivation: [L, E, E] int32 (diagonal = load); sample: [L, S, K] int16 ring of whole rows;
    num_tokens: scalar int64, real tokens since the last reset, also the ring's cursor.
    always, unbounded: for counters where nobody says whether, or how many tokens, to count.
    Tokens of a pass above max_tokens are lost.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        top_k: int,
        max_tokens: int,
        sample_rows: int,
        device: torch.device,
        num_ubatches: int = 1,
    ) -> None:
        self.num_experts = num_experts
        self.stage = torch.full((num_ubatches, num_layers, max_tokens, top_k), -1, dtype=torch.int16, device=device)
        # one spare expert, and one spare row of the sample, collect what is masked, so that shapes stay static
        self._load = torch.zeros(num_layers, num_experts + 1, dtype=torch.int32, device=device)
        self._pairs = torch.zeros(num_layers, (num_experts + 1) ** 2, dtype=torch.int32, device=device)
        self._sample = torch.full((num_layers, sample_rows + 1, top_k), -1, dtype=torch.int16, device=device)
        self.num_tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._passed = torch.zeros_like(self._load), torch.zeros_like(self._pairs)
        self._passing = [[Pass(*parts) for parts in zip(rows, *self._passed, strict=True)] for rows in self.stage]
        self._staged = [0] * num_ubatches
        self.always = torch.tensor(True, device=device)
        self.unbounded = torch.tensor(2**31 - 1, dtype=torch.int32, device=device)

    @property
    def load(self) -> torch.Tensor:
        return self._load[:, :-1]

    @property
    def coactivation(self) -> torch.Tensor:
        side = self.num_experts + 1
        once = self._pairs.view(-1, side, side)[:, :-1, :-1]
        return once + once.triu(1).transpose(1, 2)

    @property
    def sample(self) -> torch.Tensor:
        return self._sample[:, :-1]

    def newest(self, count: int) -> torch.Tensor:
        """[L, count, K]: the rows recorded last; -1 where fewer were recorded."""
        size = self._sample.shape[1] - 1
        slots = (self.num_tokens - count + torch.arange(count, device=self._sample.device)) % size
        return self._sample[:, slots]

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        buffers = self.stage, self._load, self._pairs, self._sample, *self._passed
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def passing(self, layer: int, ubatch: int = 0) -> Pass:
        """Views at fixed addresses."""
        return self._passing[ubatch][layer]

    def expect(self, real_tokens: list[int]) -> None:
        """Tell the host how many real tokens each micro-batch of the coming forward pass has."""
        for ubatch, count in enumerate(real_tokens):
            self._staged[ubatch] = max(self._staged[ubatch], min(count, self.stage.shape[2]))

    def fold(self, count: bool = True) -> None:
        """A real step is over: count it, or, outside the window, only forget it."""
        for ubatch, bound in enumerate(self._staged):
            if bound:
                rows = self.stage[ubatch, :, :bound]
                if count:
                    self._sample_rows(rows)
                rows.fill_(-1)
                self._staged[ubatch] = 0
        for total, passed in zip((self._load, self._pairs), self._passed, strict=True):
            if count:
                total += passed
            passed.zero_()

    def drop(self) -> None:
        """Forget a dummy step: all rows, because engines announce no token count for those."""
        self.stage.fill_(-1)
        self._staged = [0] * len(self._staged)
        for passed in self._passed:
            passed.zero_()

    def reset(self) -> None:
        """Begin a new window. Addresses do not change."""
        self._load.zero_()
        self._pairs.zero_()
        self._sample.fill_(-1)
        self.num_tokens.zero_()

    def _sample_rows(self, staged: torch.Tensor) -> None:
        """staged: [L, T, K]. Rows of real tokens go to the ring."""
        live = staged[0, :, 0] >= 0
        order = torch.cumsum(live, 0)
        size = self._sample.shape[1] - 1
        kept = live & (order > order[-1] - size)  # a step longer than the ring keeps its last rows
        slots = torch.where(kept, (self.num_tokens + order - 1) % size, size)
        self._sample[:, slots] = staged
        self.num_tokens += order[-1]
