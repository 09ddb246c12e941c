"""The hooks inside a worker: vLLM's EplbState and its router, never the model runner.

On GPUs vLLM runs another model runner (V2) than on CPU (V1), and both call only EplbState. vLLM decides when a
rebalance is due; the plugin plans, moves the experts and puts the maps in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..hooks import Hook
from .adapter import Adapter
from .compat import is_draft
from .dispatch_hook import ROUTER
from .lent_eplb import LOADER
from .state import get_active
from .stock_transfers import TRANSFERS, free_buffer
from .weight_guards import WEIGHT_GUARDS

_ADAPTER = "_eplb_plugin_adapter"  # on an EplbState; not there where this worker has no MoE model


def _add_model(
    original: Callable[..., Any], self: Any, model: Any, model_config: Any, *name: Any, **named: Any
) -> None:
    original(self, model, model_config, *name, **named)
    if not hasattr(self, _ADAPTER):
        setattr(self, _ADAPTER, Adapter())
    model_state = self.model_states[model_config.compute_hash()]
    free_buffer(model_state)
    getattr(self, _ADAPTER).add(model_state, model_config, draft=is_draft(model_config, get_active().vllm_config))
    if getattr(self, _ADAPTER).resumes:  # at the first step, before much traffic has come
        self.expert_rearrangement_step = self.expert_rearrangement_step_interval - 1


def _warm_up(original: Callable[..., Any], self: Any) -> Any:
    found = original(self)
    state = self.model_runner.eplb_state
    if hasattr(state, _ADAPTER):
        with torch.inference_mode():  # as in every step
            getattr(state, _ADAPTER).begin_serving(state.model_states.values())
            _count_next(state)
    return found


def _prepare_forward(
    original: Callable[..., Any], self: Any, model_config: Any, num_unpadded_tokens: int, ubatch_slices: Any = None
) -> None:
    original(self, model_config, num_unpadded_tokens, ubatch_slices)
    if hasattr(self, _ADAPTER):
        getattr(self, _ADAPTER).expect(model_config, num_unpadded_tokens, ubatch_slices)


def _step(
    original: Callable[..., Any], self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False
) -> Any:
    adapter: Adapter | None = getattr(self, _ADAPTER, None)
    if adapter is None or is_profile:
        return original(self, is_dummy, is_profile, log_stats)
    if not adapter.serving:  # of a warm-up, after which graphs are captured: nothing may move, and nothing counts
        return None
    adapter.end_forward(real=not is_dummy)
    if adapter.end_step(_steps_left(self)):  # before vLLM's own part, in which the next rebalance may begin
        self.expert_rearrangement_step = self.expert_rearrangement_step_interval - self.expert_load_window_size - 1
    found = original(self, is_dummy, is_profile, log_stats)
    _count_next(self)
    return found


def _steps_left(state: Any) -> int:
    """After the step that is about to be over, until the next rebalance begins."""
    return int(state.expert_rearrangement_step_interval - state.expert_rearrangement_step - 1)


def _count_next(state: Any) -> None:
    getattr(state, _ADAPTER).count(state._should_record_current_step(), _steps_left(state))


def _rearrange(original: Callable[..., Any], self: Any, is_profile: bool = False, *mapping: Any, **mapped: Any) -> Any:
    adapter: Adapter | None = getattr(self, _ADAPTER, None)
    if is_profile and adapter is not None:  # vLLM measures the memory of its largest move, and that of our snapshot
        with gpu_sync_allowed():
            adapter.rehearse()
    if is_profile or adapter is None:
        return original(self, is_profile, *mapping, **mapped)
    with gpu_sync_allowed():
        adapter.rebalance(self.model_states, background=self.is_async)
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


def warm_up_hook(worker_class: str) -> Hook:
    """worker_class: as `worker_cls` of vLLM's ParallelConfig names it."""
    module, _, name = worker_class.rpartition(".")
    return Hook(
        f"{module}:{name}.compile_or_warm_up_model",
        "around",
        "counts no token of a warm-up, and begins no rebalance before it is over and graphs are captured",
        "(self)",
        _warm_up,
    )


_STATE = "vllm.distributed.eplb.eplb_state:EplbState"

WORKER_HOOKS = (
    Hook(
        f"{_STATE}.add_model",
        "around",
        "registers each model, target and draft, with its recorder",
        "(self, model, model_config, model_name=None)",
        _add_model,
        older=("(self, model, model_config)",),
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
        "counts what a forward pass routed, or drops it if the pass was a dummy",
        "(self, is_dummy=False, is_profile=False, log_stats=False)",
        _step,
    ),
    Hook(
        f"{_STATE}.rearrange",
        "around",
        "ends the window on every rank at the same step and begins the plugin's rebalance, in sync mode to its end; "
        "rehearses a snapshot where vLLM measures memory",
        "(self, is_profile=False, rank_mapping=None, use_last_expert_load=False)",
        _rearrange,
        older=("(self, is_profile=False, rank_mapping=None)",),
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
    warm_up_hook("vllm.v1.worker.gpu_worker.Worker"),
    LOADER,
    ROUTER,
    *WEIGHT_GUARDS,
    TRANSFERS,
)
