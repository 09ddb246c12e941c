"""A sparse all-to-all for data parallelism: tokens travel to the nodes that hold their experts, and nowhere else.

What vLLM has for CPUs gathers all tokens on all ranks, so that no placement could save a byte. Here a token crosses
to a node once, however many of its experts are there, and is handed on inside; the outputs are summed inside the node
and cross back once. DeepEP does the same between GPU nodes (normal mode).

In force if EPLB_CPU_ALL2ALL=sparse, in every arm alike. EPLB_CPU_RANKS_PER_NODE says how ranks are divided into nodes,
in order (1).
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import vllm.model_executor.layers.fused_moe.prepare_finalize.naive_dp_ep as target
from vllm.distributed import get_ep_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.utils.network_utils import get_ip

from ..patching import replace, require
from .journey import Journey, Seat
from .links import Links

_PREPARE = (
    "self, a1, topk_weights, topk_ids, num_experts, expert_map, apply_router_weight_on_input, quant_config, "
    "defer_input_quant"
)
_FINALIZE = (
    "self, output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input, weight_and_reduce_impl"
)
_JOURNEY = "_eplb_cpu_journey"  # on a layer's prepare_finalize, from its prepare to its finalize
_links: Links | None = None  # one set for all layers


def install() -> bool:
    """Whether it is in force."""
    kind = os.environ.get("EPLB_CPU_ALL2ALL", "gather")
    if kind not in ("gather", "sparse"):
        raise ValueError(f"found EPLB_CPU_ALL2ALL={kind}, expected gather or sparse: change it")
    if kind == "sparse":
        replace(target.MoEPrepareAndFinalizeNaiveDPEPModular, "prepare", _PREPARE, lambda _: prepare)
        replace(target.MoEPrepareAndFinalizeNaiveDPEPModular, "finalize", _FINALIZE, lambda _: finalize)
    return kind == "sparse"


def prepare(
    self: Any,
    a1: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    expert_map: torch.Tensor | None,
    apply_router_weight_on_input: bool,
    quant_config: Any,
    defer_input_quant: bool = False,
) -> tuple[torch.Tensor, None, None, torch.Tensor, torch.Tensor]:
    """a1: [tokens, hidden]; topk_weights, topk_ids: [tokens, k], physical ids; returns the same for arrived tokens."""
    require("unquantised activations", f"{quant_config.quant_dtype or 'unquantised'} activations")
    require("router weights on outputs", f"router weights on {'inputs' if apply_router_weight_on_input else 'outputs'}")
    require("no LoRA", "no LoRA" if self._lora_context is None else "LoRA")
    journey = Journey(_seat(), _the_links(), num_experts)
    setattr(self, _JOURNEY, journey)
    hidden, weights, ids = journey.dispatch(a1, topk_weights, topk_ids)
    return hidden, None, None, ids, weights


def finalize(
    self: Any,
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    apply_router_weight_on_input: bool,
    weight_and_reduce_impl: Any,
) -> None:
    """fused_expert_output: [arrived, hidden], each token's sum over the experts here; output: [tokens, hidden]."""
    require(TopKWeightAndReduceNoOP.__name__, type(weight_and_reduce_impl).__name__)
    journey: Journey = getattr(self, _JOURNEY)
    delattr(self, _JOURNEY)
    journey.combine(fused_expert_output, output)


def _seat() -> Seat:
    group = get_ep_group()
    require("tensor parallel size 1", f"tensor parallel size {get_tensor_model_parallel_world_size()}")
    return Seat(group.rank_in_group, group.world_size, int(os.environ.get("EPLB_CPU_RANKS_PER_NODE", 1)))


def _the_links() -> Links:
    global _links
    if _links is None:
        group = get_ep_group()

        def share(mine: object) -> list:
            everyone: list = [None] * group.world_size
            dist.all_gather_object(everyone, mine, group=group.cpu_group)
            return everyone

        _links = Links(group.rank_in_group, get_ip(), share)
    return _links
