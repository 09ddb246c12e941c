"""Fixed-address device buffers for the routing of one model.

In the forward pass a kernel (`dispatch/kernels.py`) stages the top-k ids of a layer and counts them, in one launch with
static shapes, without a host sync, also inside a captured graph. After a real step the counts of the pass are added to
the window's for all layers at once, outside the graph; after a dummy or profile step they are dropped. So padding and
dummy tokens never reach the counts, in which they would weigh quadratically (co-activation). A row that names an expert
twice is in none but a count of its own (`routing_rows.py`).

What a pass counts at all, switches on the device say: nothing outside windows, load alone where only weights are solved
again. Pairs are kept once: smaller expert first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .kept_steps import KeptSteps


class Pass(NamedTuple):
    """Where the kernel puts what one layer routes in one pass: rows [max_tokens, K], load [E + 2], pairs [(E + 1)²]."""

    rows: torch.Tensor
    load: torch.Tensor
    pairs: torch.Tensor


ALIGNED = 16  # bytes: inductor copies a buffer that begins elsewhere before it passes it to a kernel, and back after it


class Recorder:
    """Buffers of one model on one rank.

    stage: [ubatches, L, max_tokens, K] int16, -1 = no expert of a real token.
    totals: [L, E + 2] int32: load, then rows counted, which name any expert, and rows left out, which name one twice.
    pairs: [L, E + 1, E + 1] int32 (diagonal = load); sample: [L, S, K] int16 ring of the whole rows of tokens of which
    any layer counted one; num_tokens: scalar int64, these tokens since the last reset, also the ring's cursor.
    steps: loads of single steps, of those that count pairs.
    counting, counting_pairs: scalar bool, see `count`. unbounded: where nobody says how many tokens are real.
    Tokens of a pass above max_tokens are lost. Every layer's part of a buffer begins at a multiple of ALIGNED.
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
        self.num_experts, side = num_experts, num_experts + 1
        # one spare row of the sample collects what is masked, so that shapes stay static
        self.stage = _aligned((num_ubatches, num_layers), (max_tokens, top_k), torch.int16, device).fill_(-1)
        self.totals, load = (_aligned((num_layers,), (num_experts + 2,), torch.int32, device) for _ in range(2))
        self.pairs, pairs = (_aligned((num_layers,), (side, side), torch.int32, device) for _ in range(2))
        self._sample = torch.full((num_layers, sample_rows + 1, top_k), -1, dtype=torch.int16, device=device)
        self.num_tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = KeptSteps(num_layers, num_experts, device)
        self._passed = load, pairs
        flat = pairs.flatten(1)
        self._passing = [[Pass(*parts) for parts in zip(rows, load, flat, strict=True)] for rows in self.stage]
        self._staged = [0] * num_ubatches
        self._counts = self._counts_pairs = True
        self.counting, self.counting_pairs = (torch.tensor(True, device=device) for _ in range(2))
        self.vote = torch.ones((), dtype=torch.int32, device=device)  # for when there is no memory for one
        self.unbounded = torch.tensor(2**31 - 1, dtype=torch.int32, device=device)

    @property
    def load(self) -> torch.Tensor:
        return self.totals[:, :-2]

    @property
    def sample(self) -> torch.Tensor:
        return self._sample[:, :-1]

    def newest(self, count: int) -> torch.Tensor:
        """[L, count, K]: the rows recorded last; -1 where fewer were recorded."""
        return self._sample[:, self.newest_slots(count)]

    def newest_slots(self, count: int) -> torch.Tensor:
        """[count] int64: where in the sample they lie."""
        size = self._sample.shape[1] - 1
        return (self.num_tokens - count + torch.arange(count, device=self._sample.device)) % size

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        buffers = self.stage, self.totals, self.pairs, self._sample, self.steps.loads, *self._passed
        return sum(buffer.untyped_storage().nbytes() for buffer in buffers)

    def passing(self, layer: int, ubatch: int = 0) -> Pass:
        """Views at fixed addresses."""
        return self._passing[ubatch][layer]

    def count(self, load: bool, pairs: bool = False) -> None:
        """What passes count from the next one on: nothing, load alone, or pairs (and the sample) as well.

        Between two passes, both of which the device has yet to run: their order holds there, too.
        """
        pairs = pairs and load
        if load != self._counts:
            self.counting.fill_(load)
        if pairs != self._counts_pairs:
            self.counting_pairs.fill_(pairs)
        self._counts, self._counts_pairs = load, pairs

    def expect(self, real_tokens: list[int]) -> None:
        """Tell the host how many real tokens each micro-batch of the coming forward pass has."""
        for ubatch, count in enumerate(real_tokens):
            self._staged[ubatch] = max(self._staged[ubatch], min(count, self.stage.shape[2]))

    @property
    def expecting(self) -> bool:
        """Whether a pass was announced, and neither counted nor dropped since."""
        return any(self._staged)

    def fold(self) -> None:
        """A real step is over: add what it counted to the window."""
        for ubatch, bound in enumerate(self._staged):
            if bound and self._counts_pairs:
                rows = self.stage[ubatch, :, :bound]
                self._keep(rows)
                rows.fill_(-1)
            self._staged[ubatch] = 0
        if self._counts_pairs:
            self.steps.add(self._passed[0][:, :-2])
        for total, passed in zip((self.totals, self.pairs), self._counted(), strict=False):
            total += passed
            passed.zero_()

    def skip(self) -> None:
        """A dummy step is over, which other ranks may have had tokens in."""
        self.drop()
        if self._counts_pairs:
            self.steps.add(None)

    def drop(self) -> None:
        """Forget a dummy pass: all rows, because engines announce no token count for those."""
        self._staged = [0] * len(self._staged)
        if self._counts_pairs:
            self.stage.fill_(-1)
        for passed in self._counted():
            passed.zero_()

    def reset(self) -> None:
        """Begin a new window. Addresses do not change."""
        self.totals.zero_()
        self.pairs.zero_()
        self._sample.fill_(-1)
        self.num_tokens.zero_()
        self.steps.reset()

    def _counted(self) -> tuple[torch.Tensor, ...]:
        """The buffers that a pass counts into at present."""
        return self._passed[: self._counts + self._counts_pairs]

    def _keep(self, staged: torch.Tensor) -> None:
        """staged: [L, T, K]. The rows of its tokens go to the ring."""
        live = staged.amax((0, 2)) >= 0
        order = torch.cumsum(live, 0)
        size = self._sample.shape[1] - 1
        kept = live & (order > order[-1] - size)  # a step longer than the ring keeps its last rows
        slots = torch.where(kept, (self.num_tokens + order - 1) % size, size)
        self._sample[:, slots] = staged
        self.num_tokens += order[-1]


def _aligned(leading: tuple[int, ...], each: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros [*leading, *each], in which every part of shape `each` begins at a multiple of ALIGNED bytes."""
    size, step = math.prod(each), ALIGNED // dtype.itemsize
    pitch = -(-size // step) * step
    return torch.zeros(*leading, pitch, dtype=dtype, device=device)[..., :size].view(*leading, *each)
