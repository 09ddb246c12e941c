"""Logical to physical ids by the plugin's tables: `weighted` and `cover`, over any of SGLang's dispatch algorithms, and
`exact`.

SGLang asks for a layer's maps in every forward pass and lets a chooser look them up, on GPUs inside a function that it
compiles. Here the maps carry the layer's tables, and in the chooser's place one operator goes by them as `route` says,
and counts what it maps. No shape and no branch depends on the ids: a captured graph stays right when tables are filled
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo

from ...dispatch.buffers import Counters, LayerTables
from ...dispatch.torch_ops import choose, cover, look_up
from ..hooks import Hook
from .state import get_adapter


@dataclass(kw_only=True)
class TableDispatchInfo(ExpertLocationDispatchInfo):  # type: ignore[misc]  # SGLang is untyped
    """A layer's maps, with its tables (rows [E, entries] for `weighted`), and where ids that they map are counted.

    evened: see `recording.Mapped`.
    """

    tables: torch.Tensor | LayerTables
    counters: Counters
    evened: torch.Tensor | None = None


def _init_new(original: Callable[..., Any], cls: Any, layer_id: int, *, is_draft: bool = False) -> Any:
    own = None if is_draft else get_adapter().tables_of(layer_id)
    if own is None:
        return original(cls, layer_id, is_draft=is_draft)
    if own.info is None:  # for good: what it points to is only ever written in place
        info = original(cls, layer_id, is_draft=is_draft)
        # `dynamic`: whose chooser is hooked
        told = vars(info) | {"ep_dispatch_algorithm": "dynamic"}
        own.info = TableDispatchInfo(**told, tables=own.tables, counters=own.counters, evened=own.evened)
    own.info.counters = own.counters
    return own.info


def _choose(original: Callable[..., Any], topk_ids: torch.Tensor, info: Any) -> torch.Tensor:
    if not isinstance(info, TableDispatchInfo):
        chosen: torch.Tensor = original(topk_ids, info)
        return chosen
    if info.evened is not None:
        return choose(topk_ids, info.evened, info.counters)
    if isinstance(info.tables, LayerTables):
        return cover(topk_ids, info.tables, info.counters)
    return look_up(topk_ids, info.tables, info.counters)


def _empty_topk_output(
    original: Callable[..., Any], self: Any, device: torch.device, *, layer_id: int | None = None
) -> Any:
    if not self.is_draft:
        get_adapter().route_nothing(self.layer_id)
    return original(self, device, layer_id=layer_id)


def _idle(router: str) -> Hook:
    why = "an idle rank takes part in the exchange of counts (exact)"
    return Hook(
        f"sglang.srt.layers.moe.{router}.empty_topk_output",
        "around",
        why,
        "(self, device, *, layer_id=None)",
        _empty_topk_output,
    )


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
        "chooses by them, instead of at random or in turn, and records the ids",
        "(topk_ids, info)",
        _choose,
    ),
    _idle("topk:TopK"),
    _idle("hash_topk:HashTopK"),
)
