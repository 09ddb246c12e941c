"""The load alone of a window, for weights that are solved again: nothing here waits for the device or for a rank.

The host's copy is made beside the engine's steps, and summed over the ranks by whoever has the time to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from ..devices import host_memory
from ..statistics import RoutingStatistics
from .owners import moved_selections, refuse_unequal_owners
from .recorder import Recorder

Arrived = Callable[[], torch.Tensor]


def take_load(recorder: Recorder) -> Arrived:
    """Ends the recorder's window; what is returned waits for it on the host: [L · (E + 2)] int64, its totals."""
    counts = recorder.totals.to(torch.int64).reshape(-1)
    recorder.reset()
    if counts.device.type == "cpu":
        return lambda: counts
    host = host_memory(len(counts), dtype=counts.dtype, device=counts.device)
    host.copy_(counts, non_blocking=True)
    copied = torch.Event(counts.device)
    copied.record()

    def arrived() -> torch.Tensor:
        copied.synchronize()
        return host

    return arrived


def sum_load(
    counts: torch.Tensor, group: dist.ProcessGroup, owner_group_size: int, layer_ids: list[int]
) -> RoutingStatistics | None:
    """Collective over a CPU group: the window's load on its rank 0, None elsewhere; every token counts once.

    Raises PluginError, on rank 0, if the ranks of a token-owner group did not record the same.
    """
    rank, size, layers = dist.get_rank(group), dist.get_world_size(group), len(layer_ids)
    by_expert = counts.view(layers, -1).sum(0)
    marks = torch.zeros(size, len(by_expert), dtype=torch.int64)
    marks[rank] = by_expert
    packed = torch.cat([marks.ravel(), counts if rank % owner_group_size == 0 else torch.zeros_like(counts)])
    dist.reduce(packed, dst=dist.get_global_rank(group, 0), group=group)
    if rank != 0:
        return None
    told, totals = np.split(packed.numpy(), [marks.numel()])
    told = told.reshape(marks.shape)
    moved = moved_selections(told[:, :-2], owner_group_size)
    refuse_unequal_owners(told[:, -2], moved, told[:, :-2].sum(1), owner_group_size)
    totals = totals.reshape(layers, -1)
    return RoutingStatistics(
        totals[:, :-2],
        num_tokens=totals[:, -2],
        layer_ids=np.array(layer_ids, np.int32),
        left_out=totals[:, -1],
    )
