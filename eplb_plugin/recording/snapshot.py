"""One host snapshot of what all ranks recorded: reduced to the planning rank and read by its host, chunk by chunk.

An engine has given nearly all of a GPU's memory away by then. So little is taken, all of it before the first exchange,
and every rank learns whether every rank got it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..counts import MOST_STEPS
from ..errors import mismatch
from ..statistics import RoutingStatistics
from .owners import COMPARED, differing_tokens, refuse_unequal_owners, token_marks
from .recorder import Recorder

logger = logging.getLogger("eplb_plugin")
CHUNK = 1 << 20  # numbers of 8 bytes that are reduced at once; there are two buffers of this size
_MEMORY = "more memory left by --gpu-memory-utilization or --mem-fraction-static, or fewer sample_rows"
Fill = Callable[[torch.Tensor, int], None]


class _Memory(NamedTuple):
    """All that a snapshot takes on the device.

    chunk: [CHUNK] int64, what is reduced; rows: [2 · CHUNK] int16, of the sample; slots: where this rank's part of the
    sample lies in its ring; marks: [ranks, 2 + COMPARED] int64 tokens, steps, and `token_marks`, of this rank.
    """

    chunk: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    marks: torch.Tensor


def snapshot(
    recorder: Recorder, group: dist.ProcessGroup, owner_group_size: int, layer_ids: list[int]
) -> RoutingStatistics | None:
    """Collective over the EP group `group`: the statistics on its rank 0, None elsewhere. Begins a new window.

    Ranks of one token-owner group (`owner_group_size` consecutive ranks) route the same tokens: only the first of
    them contributes, which divides the counts by the group's size exactly.

    Raises PluginError on every rank if one has no memory for it; and, on rank 0, if the ranks of a group did not record
    the same: then the groups are not what the layers say, and every count would be wrong.
    """
    try:
        return _Snapshot(recorder, group, owner_group_size).taken(layer_ids)
    finally:
        recorder.reset()


class _Snapshot:
    def __init__(self, recorder: Recorder, group: dist.ProcessGroup, owner_group_size: int) -> None:
        self._recorder, self._group, self._owners = recorder, group, owner_group_size
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        rows = recorder.sample.shape[1]
        # every owner fills its own part of the sample
        self._share = max(1, rows // (self._size // owner_group_size))
        self._first = self._rank // owner_group_size * self._share

    def taken(self, layer_ids: list[int]) -> RoutingStatistics | None:
        recorder, memory = self._recorder, self._allotted()
        layers, rows, top_k = recorder.sample.shape
        side = recorder.num_experts + 1
        contributes = self._rank % self._owners == 0

        def totals_of(part: torch.Tensor, first: int) -> None:
            part.copy_(recorder.totals[first : first + len(part)])

        def pairs_of(part: torch.Tensor, first: int) -> None:
            part.copy_(recorder.pairs[first : first + len(part)].flatten(1))

        def sample_of(part: torch.Tensor, first: int) -> None:
            """Shifted by one, so that what is left empty sums to 0. Four 16-bit ids are summed as one number: every id
            comes from one rank, so that nothing is carried from one to the next.
            """
            part.zero_()
            if self._first + self._share > rows:
                return
            ids = part.view(torch.int16)[:, : rows * top_k].view(len(part), rows, top_k)
            newest = memory.rows[: len(part) * self._share * top_k].view(len(part), self._share, top_k)
            torch.index_select(recorder.sample[first : first + len(part)], 1, memory.slots, out=newest)
            ids[:, self._first : self._first + self._share].copy_(newest.add_(1))

        def steps_of(part: torch.Tensor, first: int) -> None:
            loads, kept = part.view(len(part), MOST_STEPS, side - 1), len(recorder.steps.numbers)
            loads[:, :kept].copy_(recorder.steps.loads[:kept, first : first + len(part)].transpose(0, 1))
            loads[:, kept:].zero_()

        chunk = memory.chunk
        dist.reduce(memory.marks, dst=dist.get_global_rank(self._group, 0), group=self._group)
        totals = self._sum(chunk, (layers, side + 1), totals_of if contributes else _nothing)
        pairs = self._sum(chunk, (layers, side**2), pairs_of if contributes else _nothing)
        sample = self._sum(chunk, (layers, -(-rows * top_k // 4)), sample_of if contributes else _nothing)
        steps = self._sum(chunk, (layers, MOST_STEPS * (side - 1)), steps_of if contributes else _nothing)
        if self._rank != 0:
            return None
        marks = memory.marks.cpu().numpy()
        tokens = marks[:, 0]
        differing = differing_tokens(marks[:, 2:], self._owners)
        refuse_unequal_owners(tokens, differing, np.minimum(tokens, COMPARED), self._owners)
        once = pairs.reshape(layers, side, side)[:, :-1, :-1]
        return RoutingStatistics(
            load=totals[:, :-2],
            coactivation=once + np.triu(once, 1).transpose(0, 2, 1),
            sample=sample.view(np.int16)[:, : rows * top_k].reshape(layers, rows, top_k) - 1,
            num_tokens=totals[:, -2],
            layer_ids=np.array(layer_ids, np.int32),
            left_out=totals[:, -1],
            steps=self._in_order(steps.reshape(layers, MOST_STEPS, side - 1), marks[:, 1]),
        )

    def _in_order(self, steps: NDArray[np.int64], over: NDArray[np.int64]) -> NDArray[np.int32] | None:
        """steps: [L, places, E]; over: [ranks] steps of the window -> [S, L, E] in order of time, without idle ones.

        None if there is none, or ranks did not count the same steps: then places hold sums over different ones.
        """
        if (over != over[0]).any():
            line = "single steps of this window are not used: ranks counted %d to %d of them"
            logger.warning(line, over.min(), over.max())
            return None
        places = np.argsort(self._recorder.steps.numbers).astype(np.int64)
        loads = steps[:, places].transpose(1, 0, 2).astype(np.int32)
        loads = loads[loads.any(axis=(1, 2))]
        return loads if len(loads) else None

    def _allotted(self) -> _Memory:
        """Collective. Raises PluginError on every rank if one could not get it: none is left waiting for the others."""
        problem, memory = "", None
        try:
            memory = self._allot()
        except RuntimeError as error:  # torch.OutOfMemoryError is one; not every allocator raises that
            problem = " ".join(str(error).split())
        vote = self._recorder.vote.fill_(memory is not None)
        dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=self._group)
        if not vote.item() or memory is None:
            found = f"none for it on this rank ({problem[:200]})" if problem else "none for it on another rank"
            raise mismatch("memory for a snapshot", found=found, expected=f"{CHUNK * 16 >> 20} MiB", fix=_MEMORY)
        return memory

    def _allot(self) -> _Memory:
        recorder, device = self._recorder, self._recorder.load.device
        rows, top_k = recorder.sample.shape[1:]
        side = recorder.num_experts + 1
        # a layer is reduced at once
        largest = max(side**2, MOST_STEPS * (side - 1), -(-rows * top_k // 4))
        chunk = torch.empty(max(CHUNK, largest), dtype=torch.int64, device=device)
        newest = torch.empty(4 * len(chunk), dtype=torch.int16, device=device)
        compared = COMPARED if self._owners > 1 else 0
        marks = torch.zeros(self._size, 2 + compared, dtype=torch.int64, device=device)
        marks[self._rank, 0] = recorder.num_tokens
        marks[self._rank, 1].fill_(recorder.steps.over)
        if compared:
            marks[self._rank, 2:] = token_marks(recorder)
        return _Memory(chunk, newest, recorder.newest_slots(self._share), marks)

    def _sum(self, chunk: torch.Tensor, shape: tuple[int, int], fill: Fill) -> NDArray[np.int64]:
        """Collective: [layers, numbers] on rank 0, nothing elsewhere. fill(part, first): the layers from `first` on."""
        layers, numbers = shape
        found = np.empty(shape if self._rank == 0 else (0, 0), np.int64)
        step = len(chunk) // numbers
        for first in range(0, layers, step):
            part = chunk[: min(step, layers - first) * numbers].view(-1, numbers)
            fill(part, first)
            dist.reduce(part, dst=dist.get_global_rank(self._group, 0), group=self._group)
            if self._rank == 0:
                found[first : first + len(part)] = part.cpu().numpy()
        return found


def _nothing(part: torch.Tensor, first: int) -> None:
    part.zero_()
