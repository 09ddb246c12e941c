"""The routing meter in vLLM; on when EPLB_METER_DIR names a folder. It counts in every arm, whether EPLB is on or not.

It reads what leaves the router, after any mapping: physical expert ids, and without EPLB logical ones, which are then
the same. A forward says itself which rows are padding (all of them in a dummy step); one that does not say so is that
of a draft model, and is not counted.

A step ends where the model runner, V1 or V2, steps EPLB. Every rank passes there once per engine step, in dummy steps
too; with EPLB off the engine's own method does nothing, but is called. Ranks that step together thus agree on the
window.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.v1.worker.gpu.eplb_utils import EPLBController
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from ..meter import Meter
from ..patching import replace, require

_meter: Meter | None = None  # made by the first step's first layer, which knows the experts


def install() -> bool:
    """Whether the meter is on."""
    if not Meter.wanted():
        return False
    parameters = "self, hidden_states, router_logits, topk_indices_dtype, *, input_ids"
    replace(FusedMoERouter, "select_experts", parameters, _recorded)
    replace(GPUModelRunner, "eplb_step", "self, is_dummy, is_profile", partial(_ending_a_step, "eplb_state"))
    replace(EPLBController, "step", "self, is_dummy, is_profile", partial(_ending_a_step, "state"))
    return True


def _recorded(original: Callable) -> Callable:
    def select_experts(self: FusedMoERouter, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weights, physical_ids = original(self, *args, **kwargs)
        is_padding = get_forward_context().is_padding
        if is_padding is not None:
            _record(_runner_of(self), physical_ids, is_padding)
        return weights, physical_ids

    return select_experts


def _ending_a_step(state: str, original: Callable) -> Callable:
    """state: the attribute that holds EPLB's, None with EPLB off."""

    def step(self: GPUModelRunner | EPLBController, is_dummy: bool = False, is_profile: bool = False) -> None:
        maps, steps = _expert_maps(getattr(self, state)), _steps_since_rebalance(getattr(self, state))
        original(self, is_dummy, is_profile)
        if _meter is None:
            return
        if is_profile:  # measures memory before serving; its made-up tokens are not marked as padding
            _meter.forget()
            return
        for old, new in zip(maps, _expert_maps(getattr(self, state)), strict=True):
            _meter.moved(old, new)
        _meter.rebalances += _steps_since_rebalance(getattr(self, state)) < steps
        _meter.end_step()

    return step


def _expert_maps(state: EplbState | None) -> list[np.ndarray]:
    """[L, slots] copies of the maps in force, of the target and of draft models; they change only inside a step."""
    if state is None:
        return []
    return [one.physical_to_logical_map.numpy().copy() for one in state.model_states.values()]


def _steps_since_rebalance(state: EplbState | None) -> int:
    """vLLM's own count, which begins anew with every rebalance, whoever carries that out."""
    return 0 if state is None else state.expert_rearrangement_step


def _record(runner: MoERunner, physical_ids: torch.Tensor, is_padding: torch.Tensor) -> None:
    """physical_ids: [rows, k]; is_padding: [tokens], of which the rows are all, or this rank's chunk."""
    global _meter
    owners = get_tensor_model_parallel_world_size()
    if runner.moe_config.is_sequence_parallel:
        is_padding = own_chunk(is_padding, get_tensor_model_parallel_rank(), owners)
        owners = 1
    require(f"a router that sees {len(is_padding)} rows", f"a router that sees {len(physical_ids)} rows")
    if _meter is None:
        _meter = _make_meter(runner)
    _meter.record(runner.layer_name, physical_ids[~is_padding].numpy(), owners)


def own_chunk(is_padding: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """The rows that a rank routes under sequence parallelism: an equal chunk of the batch, filled up with padding.

    is_padding: [tokens]; returns [ceil(tokens / ranks)].
    """
    rows = -(-len(is_padding) // ranks)
    filled = torch.nn.functional.pad(is_padding, (0, rows * ranks - len(is_padding)), value=True)
    return filled[rank * rows : (rank + 1) * rows]


def _make_meter(runner: MoERunner) -> Meter:
    if runner.expert_placement_strategy != "linear":
        raise ValueError(
            f"found expert placement strategy {runner.expert_placement_strategy}, expected linear: change it, or unset "
            "EPLB_METER_DIR"
        )
    parallel = runner.moe_config.moe_parallel_config
    return Meter.from_environment(parallel.ep_rank, parallel.ep_size, runner.moe_config.num_experts)


@cache
def _runner_of(router: FusedMoERouter) -> MoERunner:
    """The layer that a router belongs to: it alone knows its name and how its ranks share the experts."""
    layers = get_forward_context().no_compile_layers.values()
    return next(layer for layer in layers if isinstance(layer, MoERunner) and layer.router is router)
