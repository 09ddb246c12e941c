"""A kernel that maps ids and does nothing else, as the engines' own do: recording is measured against it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch.rules import HASH_MULTIPLIER

HASH = tl.constexpr(HASH_MULTIPLIER)


@triton.jit
def _map(ids, slots, table, entries, size, K: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + place, mask=place < size, other=-1)
    entry = (((place // K).to(tl.uint32) * HASH) % entries.to(tl.uint32)).to(tl.int32)
    slot = tl.load(table + expert * entries + entry, mask=expert >= 0, other=-1)
    tl.store(slots + place, slot.to(slots.dtype.element_ty), mask=place < size)


def map_only(ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """ids: [T, k] in one piece; rows: [E, entries] -> [T, k] slots, as `kernels.look_up` maps."""
    slots = torch.empty_like(ids)
    _map[(triton.cdiv(ids.numel(), 1024),)](ids, slots, rows, rows.shape[1], ids.numel(), K=ids.shape[1], BLOCK=1024)
    return slots
