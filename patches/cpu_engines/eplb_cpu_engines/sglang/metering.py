"""The routing meter in SGLang; on when EPLB_METER_DIR names a folder. It counts in every arm, with or without EPLB.

It reads what routing hands to SGLang's own recorder: physical expert ids, and without EPLB logical ones, which are then
the same; padded rows hold -1 only. Forwards of draft models are not counted.

A step ends with the forward of the target model, which every rank runs and inside which EPLB plans and moves.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sglang.srt.eplb.eplb_manager import EPLBManager
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.layers.moe import topk
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_exec, get_parallel

from ..meter import Meter
from ..patching import replace, require

_ROUTING = (
    "topk_ids, topk_weights, topk_config, router_logits, layer_id, num_token_non_padded, "
    "expert_location_dispatch_info, padded_rows_masked"
)
_FORWARD = "self, forward_batch, skip_attn_backend_init, pp_proxy_tensors, reinit_attn_backend, split_forward_count"

_meter: Meter | None = None  # made by the first step's first layer, which knows the experts
_in_draft = False  # whether the forward that runs is a draft model's


def install() -> bool:
    """Whether the meter is on."""
    if not Meter.wanted():
        return False
    replace(topk, "_post_process_topk_ids", _ROUTING, _recorded)
    replace(ModelRunner, "forward", _FORWARD, _ending_a_step)
    replace(EPLBManager, "_check_rebalance_needed", "self, average_utilization_rate_over_window", _counted)
    return True


def _recorded(original: Callable) -> Callable:
    def post_process(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, weights, physical_ids = original(*args, **kwargs)
        if not _in_draft:
            _record(kwargs["layer_id"], physical_ids, kwargs["router_logits"].shape[-1])
        return ids, weights, physical_ids

    return post_process


def _ending_a_step(original: Callable) -> Callable:
    def forward(self: ModelRunner, *args: Any, **kwargs: Any) -> Any:
        global _in_draft
        if self.is_draft_worker:
            _in_draft = True
            try:
                return original(self, *args, **kwargs)
            finally:
                _in_draft = False
        before = _expert_map()
        output = original(self, *args, **kwargs)
        if _meter is not None:
            if before is not None:
                _meter.moved(before, _expert_map())
            _meter.end_step()
        return output

    return forward


def _expert_map() -> np.ndarray | None:
    """[L, slots] copy of the map in force; it changes only inside a step."""
    metadata = get_global_expert_location_metadata()
    return None if metadata is None else metadata.physical_to_logical_map_cpu.numpy().copy()


def _counted(original: Callable) -> Callable:
    """Every rebalance begins with this question, whoever does the rest."""

    def check_rebalance_needed(self: EPLBManager, average_utilization_rate_over_window: Any) -> bool:
        needed = original(self, average_utilization_rate_over_window)
        if _meter is not None and needed:
            _meter.rebalances += 1
        return needed

    return check_rebalance_needed


def _record(layer_id: int, physical_ids: torch.Tensor, logical_experts: int) -> None:
    """physical_ids: [rows, k]; a padded row holds -1 only."""
    global _meter
    if _meter is None:
        _meter = _make_meter(logical_experts)
    # without an all-to-all every rank routes every token
    real = (physical_ids >= 0).any(1)
    _meter.record(f"layer {layer_id}", physical_ids[real].numpy(), owners=_meter.seat.num_ranks)


def _make_meter(logical_experts: int) -> Meter:
    parallel, metadata = get_parallel(), get_global_expert_location_metadata()
    require("moe_a2a_backend none", f"moe_a2a_backend {get_exec().moe.moe_a2a_backend}")
    require(f"ep_size {parallel.tp_size}", f"ep_size {parallel.moe_ep_size}")
    experts = logical_experts if metadata is None else metadata.num_physical_experts
    return Meter.from_environment(parallel.moe_ep_rank, parallel.moe_ep_size, experts)
