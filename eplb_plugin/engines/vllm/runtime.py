"""The hooks inside a worker: vLLM's EplbState and its router, never the model runner.

On GPUs vLLM runs another model runner (V2) than on CPU (V1), and both call only EplbState. vLLM decides when a
rebalance is due; the plugin plans, moves the experts and puts the maps in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..hooks import Hook
from .adapter import Adapter
from .mapping import ROUTER

_ADAPTER = "_eplb_plugin_adapter"  # on an EplbState


def _add_model(original: Callable[..., Any], self: Any, model: Any, model_config: Any, model_name: Any = None) -> None:
    original(self, model, model_config, model_name)
    if not hasattr(self, _ADAPTER):
        setattr(self, _ADAPTER, Adapter())
    model_state = self.model_states[model_config.compute_hash()]
    getattr(self, _ADAPTER).add(model_state, model_config, draft=model_name is not None)
    if getattr(self, _ADAPTER).resumes:  # at the first step, before much traffic has come
        self.expert_rearrangement_step = self.expert_rearrangement_step_interval - 1


def _prepare_forward(
    original: Callable[..., Any], self: Any, model_config: Any, num_unpadded_tokens: int, ubatch_slices: Any = None
) -> None:
    original(self, model_config, num_unpadded_tokens, ubatch_slices)
    getattr(self, _ADAPTER).expect(model_config, num_unpadded_tokens, ubatch_slices)


def _step(
    original: Callable[..., Any], self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False
) -> Any:
    adapter: Adapter = getattr(self, _ADAPTER)
    steps_left = self.expert_rearrangement_step_interval - self.expert_rearrangement_step - 1
    adapter.end_forward(not is_dummy and not is_profile, self._should_record_current_step(), steps_left)
    if not is_profile:  # before vLLM's own part, in which the next rebalance may begin
        adapter.end_step(steps_left)
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
    with gpu_sync_allowed():
        getattr(self, _ADAPTER).rebalance(self.model_states, background=self.is_async)
    if self.is_async:
        next(iter(self.model_states.values())).rebalanced = True  # vLLM asks every step, and defers the next rebalance


def _all_ranks_result_ready(original: Callable[..., Any], self: Any, model_state: Any) -> bool:
    with gpu_sync_allowed():
        model_state.rebalanced = getattr(self, _ADAPTER).cycle.step()
    return False


def _start_async_loop(
    original: Callable[..., Any], self: Any, rank_mapping: Any = None, is_profile: bool = False
) -> None:
    """vLLM's thread would wait for ever."""


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
        "ends the window on every rank at the same step and begins the plugin's rebalance, in sync mode to its end",
        "(self, is_profile=False, rank_mapping=None, use_last_expert_load=False)",
        _rearrange,
    ),
    Hook(
        f"{_STATE}._all_ranks_result_ready",
        "replace",
        "in async mode, asked once a step during a rebalance: the plugin's migration takes a step",
        "(self, model_state)",
        _all_ranks_result_ready,
    ),
    Hook(
        f"{_STATE}.start_async_loop",
        "replace",
        "vLLM's background thread, which would move weights, is not started",
        "(self, rank_mapping=None, is_profile=False)",
        _start_async_loop,
    ),
    ROUTER,
)
