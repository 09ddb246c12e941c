"""The hooks inside a worker: vLLM's EplbState and its router, never the model runner.

On GPUs vLLM runs another model runner (V2) than on CPU (V1), and both call only EplbState. Expert weights are moved by
vLLM's own transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.eplb import async_worker

from ..hooks import Hook
from .adapter import LAYER, TABLES, Adapter, PlannedPolicy

_ADAPTER = "_eplb_plugin_adapter"  # on an EplbState


def _add_model(original: Callable[..., Any], self: Any, model: Any, model_config: Any, model_name: Any = None) -> None:
    original(self, model, model_config, model_name)
    if not hasattr(self, _ADAPTER):
        setattr(self, _ADAPTER, Adapter())
    model_state = self.model_states[model_config.compute_hash()]
    getattr(self, _ADAPTER).add(model_state, model_config, draft=model_name is not None)


def _prepare_forward(
    original: Callable[..., Any], self: Any, model_config: Any, num_unpadded_tokens: int, ubatch_slices: Any = None
) -> None:
    original(self, model_config, num_unpadded_tokens, ubatch_slices)
    getattr(self, _ADAPTER).expect(model_config, num_unpadded_tokens, ubatch_slices)


def _apply_eplb_mapping(original: Callable[..., Any], self: Any, topk_ids: torch.Tensor) -> Any:
    stage = getattr(self.eplb_state, LAYER, None)
    if stage is not None:
        stage(topk_ids, self.eplb_state.num_unpadded_tokens_tensors)
    return original(self, topk_ids)


def _step(
    original: Callable[..., Any], self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False
) -> Any:
    adapter: Adapter = getattr(self, _ADAPTER)
    steps_left = self.expert_rearrangement_step_interval - self.expert_rearrangement_step - 1
    adapter.end_forward(not is_dummy and not is_profile, self._should_record_current_step(), steps_left)
    if not is_profile:  # before vLLM's own part, in which the next rebalance may begin
        adapter.end_step(steps_left, moving=any(state.rebalanced for state in self.model_states.values()))
    return original(self, is_dummy, is_profile, log_stats)


def _rearrange(
    original: Callable[..., Any],
    self: Any,
    is_profile: bool = False,
    rank_mapping: dict[int, int] | None = None,
    use_last_expert_load: bool = False,
) -> Any:
    if is_profile:  # vLLM reserves memory for the largest move; no placement is planned
        return original(self, is_profile, rank_mapping, use_last_expert_load)
    adapter: Adapter = getattr(self, _ADAPTER)
    adapter.observe()
    vanilla, self.policy = self.policy, PlannedPolicy(adapter, list(self.model_states))
    try:
        return original(self, is_profile, rank_mapping, use_last_expert_load)
    finally:
        self.policy = vanilla


def _run_rebalance_experts(
    original: Callable[..., Any],
    model_state: Any,
    eplb_state: Any,
    physical_to_logical_map_cpu: torch.Tensor,
    stream: Any,
) -> torch.Tensor:
    key = next(key for key, state in eplb_state.model_states.items() if state is model_state)
    with async_worker.device_stream(stream):
        load = model_state.eplb_stats.global_expert_load_window.cpu()
    return getattr(eplb_state, _ADAPTER).decide(key, physical_to_logical_map_cpu, load)


def _commit_eplb_maps(
    original: Callable[..., Any], model_state: Any, new_physical_to_logical_map: torch.Tensor
) -> None:
    layers = range(len(new_physical_to_logical_map))
    getattr(model_state, TABLES).commit(new_physical_to_logical_map.cpu(), layers)


def _commit_eplb_maps_for_layer(
    original: Callable[..., Any], model_state: Any, new_physical_to_logical_map: torch.Tensor, layer: int
) -> None:
    getattr(model_state, TABLES).commit(new_physical_to_logical_map.cpu()[None], range(layer, layer + 1))


_STATE = "vllm.distributed.eplb.eplb_state:EplbState"

RUNTIME = (
    Hook(
        f"{_STATE}.add_model",
        "around",
        "registers each model, target and draft, with its recorder",
        "(self, model, model_config, model_name=None)",
        _add_model,
    ),
    Hook(
        f"{_STATE}.prepare_forward",
        "around",
        "tells the host how many tokens of the coming forward pass are real",
        "(self, model_config, num_unpadded_tokens, ubatch_slices=None)",
        _prepare_forward,
    ),
    Hook(
        f"{_STATE}.step",
        "around",
        "counts what a forward pass routed, or drops it if the pass was a dummy or outside the window",
        "(self, is_dummy=False, is_profile=False, log_stats=False)",
        _step,
    ),
    Hook(
        f"{_STATE}.rearrange",
        "around",
        "ends the window on every rank at the same step and, in sync mode, plans instead of vLLM's policy",
        "(self, is_profile=False, rank_mapping=None, use_last_expert_load=False)",
        _rearrange,
    ),
    Hook(
        "vllm.distributed.eplb.async_worker:run_rebalance_experts",
        "replace",
        "in async mode, plans in vLLM's background thread instead of vLLM's policy",
        "(model_state, eplb_state, physical_to_logical_map_cpu, stream)",
        _run_rebalance_experts,
    ),
    Hook(
        "vllm.distributed.eplb.eplb_state:_commit_eplb_maps",
        "replace",
        "fills the plugin's tables instead of vLLM's replica maps, all layers at once (sync mode)",
        "(model_state, new_physical_to_logical_map)",
        _commit_eplb_maps,
    ),
    Hook(
        "vllm.distributed.eplb.eplb_state:_commit_eplb_maps_for_layer",
        "replace",
        "the same for the layer whose experts have just moved (async mode)",
        "(model_state, new_physical_to_logical_map, layer)",
        _commit_eplb_maps_for_layer,
    ),
    Hook(
        "vllm.model_executor.layers.fused_moe.router.base_router:BaseRouter._apply_eplb_mapping",
        "around",
        "sees the logical top-k ids before vLLM maps them to physical experts",
        "(self, topk_ids)",
        _apply_eplb_mapping,
    ),
)
