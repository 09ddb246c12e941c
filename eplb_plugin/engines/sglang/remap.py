"""Logical to physical ids by the plugin's tables: `weighted` and `cover`, over any of SGLang's dispatch algorithms.

SGLang asks for a layer's maps in every forward pass and lets a chooser look them up, on GPUs inside a function that it
compiles. Here the maps are the layer's tables, and the chooser goes by them as `route` says: under `weighted` it takes
the entry that the hash of a token's position in its rank's batch names, as vLLM's kernel does; under `cover` one
operator chooses for all experts of a token together, and counts them. No shape and no branch depends on the ids: a
captured graph stays right when tables are filled again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo

from ...dispatch.kernels import Counters, LayerTables
from ...dispatch.ops import cover_op
from ...dispatch.rules import HASH_MASK, HASH_MULTIPLIER
from ..hooks import Hook
from .state import get_adapter


class TableDispatchInfo(ExpertLocationDispatchInfo):  # type: ignore[misc]  # SGLang is untyped
    """A layer's maps, of which partial_logical_to_all_physical_map is [E, entries] int32 of our tables."""


@dataclass(kw_only=True)
class CoverDispatchInfo(ExpertLocationDispatchInfo):  # type: ignore[misc]
    """A layer's maps, with its tables for `cover`, and where the ids that are chosen by them are counted."""

    tables: LayerTables
    counters: Counters


def choose(topk_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """topk_ids: [T, K] or [T] logical ids, -1 = none; rows: [E, entries] slots -> their physical ids, likewise."""
    position = torch.arange(topk_ids.shape[0], device=topk_ids.device).reshape(-1, *[1] * (topk_ids.dim() - 1))
    entry = (position * HASH_MULTIPLIER & HASH_MASK) % rows.shape[1]
    slots = rows[topk_ids.clamp(min=0).long(), entry].to(topk_ids.dtype)
    return torch.where(topk_ids >= 0, slots, -1)


def _init_new(original: Callable[..., Any], cls: Any, layer_id: int, *, is_draft: bool = False) -> Any:
    info = original(cls, layer_id, is_draft=is_draft)
    if info is None:
        return None
    adapter, own = get_adapter(), vars(info) | {"ep_dispatch_algorithm": "dynamic"}  # whose chooser is hooked
    if (cover := adapter.cover_of(layer_id)) is not None:
        return CoverDispatchInfo(**own, tables=cover[0], counters=cover[1])
    if (rows := adapter.rows_of(layer_id)) is not None:
        return TableDispatchInfo(**(own | {"partial_logical_to_all_physical_map": rows}))
    return info


def _choose(original: Callable[..., Any], topk_ids: torch.Tensor, info: Any) -> torch.Tensor:
    if isinstance(info, CoverDispatchInfo):
        return cover_op(topk_ids, info.tables, info.counters)
    if isinstance(info, TableDispatchInfo):
        return choose(topk_ids, info.partial_logical_to_all_physical_map)
    chosen: torch.Tensor = original(topk_ids, info)
    return chosen


_DISPATCH = "sglang.srt.eplb.expert_location_dispatch"

REMAP = (
    Hook(
        f"{_DISPATCH}:ExpertLocationDispatchInfo.init_new",
        "around",
        "gives a layer its part of the plugin's tables (dispatch: weighted, cover)",
        "(cls, layer_id, *, is_draft=False)",
        _init_new,
    ),
    Hook(
        f"{_DISPATCH}:_topk_ids_logical_to_physical_dynamic",
        "around",
        "chooses by them, instead of at random or in turn; under cover it also records the ids",
        "(topk_ids, info)",
        _choose,
    ),
)
