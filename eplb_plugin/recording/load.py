"""The load alone of a window, for weights that are solved again: nothing here waits for the device or for a rank.

The host's copy is made beside the engine's steps, and summed over the ranks by whoever has the time to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from ..statistics import RoutingStatistics
from .recorder import Recorder
from .snapshot import refuse_unequal_owners

Arrived = Callable[[], torch.Tensor]


def take_load(recorder: Recorder) -> Arrived:
    """Ends the recorder's window; what is returned waits for it on the host: [1 + L · E] int64 tokens, selections."""
    counts = torch.cat([recorder.num_tokens.reshape(1), recorder.load.to(torch.int64).reshape(-1)])
    recorder.reset()
    if not counts.is_cuda:
        return lambda: counts
    host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
    host.copy_(counts, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
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
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    digests = torch.zeros(size, dtype=torch.int64)
    digests[rank] = (counts * torch.arange(1, len(counts) + 1)).sum()
    packed = torch.cat([digests, counts if rank % owner_group_size == 0 else torch.zeros_like(counts)])
    dist.reduce(packed, dst=dist.get_global_rank(group, 0), group=group)
    if rank != 0:
        return None
    marks, tokens, load = np.split(packed.numpy(), [size, size + 1])
    refuse_unequal_owners(marks.reshape(-1, owner_group_size))
    layers = len(layer_ids)
    number = np.full(layers, tokens[0])
    return RoutingStatistics(load.reshape(layers, -1), num_tokens=number, layer_ids=np.array(layer_ids, np.int32))
