"""Logical to physical ids by the plugin's tables: rule `weighted` in SGLang, on top of any of its dispatch algorithms.

SGLang asks for a layer's maps in every forward pass and lets a chooser look them up. Here the maps are the layer's rows
of the tables, and the chooser takes the entry that the hash of a token's position in its rank's batch names, as vLLM's
kernel does and `route` says. Nothing depends on values: a captured graph stays right when rows are filled again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo

from ...dispatch.rules import HASH_MASK, HASH_MULTIPLIER
from ..hooks import Hook
from .state import get_adapter


class TableDispatchInfo(ExpertLocationDispatchInfo):  # type: ignore[misc]  # SGLang is untyped
    """A layer's maps, of which partial_logical_to_all_physical_map is [E, entries] int32 of our tables."""


def choose(topk_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """topk_ids: [T, K] or [T] logical ids, -1 = none; rows: [E, entries] slots -> their physical ids, likewise."""
    position = torch.arange(topk_ids.shape[0], device=topk_ids.device).reshape(-1, *[1] * (topk_ids.dim() - 1))
    entry = (position * HASH_MULTIPLIER & HASH_MASK) % rows.shape[1]
    slots = rows[topk_ids.clamp(min=0).long(), entry].to(topk_ids.dtype)
    return torch.where(topk_ids >= 0, slots, -1)


def _init_new(original: Callable[..., Any], cls: Any, layer_id: int, *, is_draft: bool = False) -> Any:
    info = original(cls, layer_id, is_draft=is_draft)
    rows = None if info is None else get_adapter().rows_of(layer_id)
    if rows is None:
        return info
    own = {"ep_dispatch_algorithm": "dynamic", "partial_logical_to_all_physical_map": rows}
    return TableDispatchInfo(**(vars(info) | own))


def _choose(original: Callable[..., Any], topk_ids: torch.Tensor, info: Any) -> torch.Tensor:
    if isinstance(info, TableDispatchInfo):
        return choose(topk_ids, info.partial_logical_to_all_physical_map)
    chosen: torch.Tensor = original(topk_ids, info)
    return chosen


_DISPATCH = "sglang.srt.eplb.expert_location_dispatch"

REMAP = (
    Hook(
        f"{_DISPATCH}:ExpertLocationDispatchInfo.init_new",
        "around",
        "gives a layer its rows of the plugin's tables (dispatch: weighted)",
        "(cls, layer_id, *, is_draft=False)",
        _init_new,
    ),
    Hook(
        f"{_DISPATCH}:_topk_ids_logical_to_physical_dynamic",
        "around",
        "looks them up by the token's position, instead of at random or in turn",
        "(topk_ids, info)",
        _choose,
    ),
)
