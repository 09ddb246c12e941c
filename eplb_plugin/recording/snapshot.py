"""One host snapshot of what all ranks recorded: one reduction to the planning rank, one transfer to its host."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..errors import mismatch
from ..statistics import RoutingStatistics
from .recorder import Recorder


def snapshot(
    recorder: Recorder, group: dist.ProcessGroup, owner_group_size: int, layer_ids: list[int]
) -> RoutingStatistics | None:
    """Collective over the EP group `group`: the statistics on its rank 0, None elsewhere. Begins a new window.

    Ranks of one token-owner group (`owner_group_size` consecutive ranks) route the same tokens: only the first of
    them contributes, which divides the counts by the group's size exactly.

    Raises PluginError, on rank 0, if the ranks of a group did not record the same: then the groups are not what the
    layers say, and every count would be wrong.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    contributes = rank % owner_group_size == 0
    shape = layers, rows, top_k = recorder.sample.shape
    entries = layers * rows * top_k
    experts = recorder.num_experts
    # Every owner fills its own part of the sample, shifted by one so that what is left empty sums to 0. Four 16-bit ids
    # are summed as one number: every id comes from one rank, so that nothing is carried from one to the next.
    share = max(1, rows // (size // owner_group_size))
    ids = torch.zeros(entries + -entries % 4, dtype=torch.int16, device=recorder.load.device)
    sample = ids[:entries].view(shape)
    first = rank // owner_group_size * share
    if first + share <= rows:
        sample[:, first : first + share] = recorder.newest(share) + 1
    counts = [part.to(torch.int64).reshape(-1) for part in (recorder.num_tokens, recorder.load, recorder.coactivation)]
    packed = torch.cat([*counts, ids.view(torch.int64)])
    if not contributes:
        packed.zero_()
    digests = torch.zeros(size, dtype=torch.int64, device=packed.device)
    digests[rank] = sum((part * torch.arange(1, len(part) + 1, device=part.device)).sum() for part in counts)
    recorder.reset()
    packed = torch.cat([digests, packed])
    dist.reduce(packed, dst=dist.get_global_rank(group, 0), group=group)
    if rank != 0:
        return None
    bounds = np.cumsum([size, 1, layers * experts, layers * experts**2])
    marks, tokens, load, pairs, kept = np.split(packed.cpu().numpy(), bounds)
    refuse_unequal_owners(marks.reshape(-1, owner_group_size))
    return RoutingStatistics(
        load=load.reshape(layers, experts),
        coactivation=pairs.reshape(layers, experts, experts),
        sample=kept.view(np.int16)[:entries].reshape(shape) - 1,
        num_tokens=np.full(layers, tokens[0]),
        layer_ids=np.array(layer_ids, np.int32),
    )


def refuse_unequal_owners(marks: NDArray[np.int64]) -> None:
    """marks: [groups, ranks of a group], a digest of what each rank recorded."""
    if (marks != marks[:, :1]).any():
        group = int((marks != marks[:, :1]).any(1).argmax())
        raise mismatch(
            f"token-owner group {group}",
            found="ranks that recorded different routing",
            expected=f"{marks.shape[1]} ranks that route the same tokens",
            fix="report the model and its parallel layout; this one cannot be planned for",
        )
