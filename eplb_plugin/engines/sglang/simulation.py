"""An SGLang server that routes recorded tokens instead of what its model does: `EPLB_PLUGIN_REPLAY="trace=FILE"`.

SGLang has a routing simulator, which deals tokens out evenly; it is switched on, and asked for recorded ones instead.
The model's output is not valid. Works with and without EPLB, in every arm.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ..hooks import Hook
from ..replay import Recorded, Replay
from ..settings import REPLAY
from .registry import register_hooks

SWITCH = "SGLANG_SIMULATE_ROUND_ROBIN_EXPERTS"  # SGLang's own

_replay: Replay | None = None


def _apply_routing_simulation(
    original: Callable[..., Any],
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    num_experts: int,
    **named: Any,
) -> None:
    """In place, and of the routed columns alone: those of fused shared experts stay."""
    assert _replay is not None
    routed, real = named["num_routed_topk"], named.get("num_token_non_padded")
    ids = _replay.deal(named["layer_id"], len(topk_ids), routed, num_experts, topk_ids.device)
    weight = torch.full_like(topk_weights[:, :routed], named.get("weight_scale", 1.0) / routed)
    if real is not None:
        is_real = (torch.arange(len(ids), device=ids.device) < real)[:, None]
        ids, weight = ids.where(is_real, -1), weight.where(is_real, 0.0)
    topk_ids[:, :routed] = ids.to(topk_ids.dtype)
    topk_weights[:, :routed] = weight


REPLAY_HOOKS = (
    Hook(
        "sglang.srt.layers.moe.topk:apply_routing_simulation",
        "replace",
        "routes recorded tokens where SGLang's simulator deals them out evenly",
        "(topk_ids, topk_weights, num_experts, *, num_routed_topk, top_k, layer_id, num_token_non_padded=None, "
        "weight_scale=1.0)",
        _apply_routing_simulation,
    ),
)


def register_replay(words: str) -> None:
    """words: `trace=FILE…`. Raises PluginError for bad ones, and where SGLang's simulator is another."""
    global _replay
    _replay = Replay(Recorded.parse(words, REPLAY))
    os.environ[SWITCH] = "1"  # also for the processes that this one starts
    register_hooks(REPLAY_HOOKS)
