"""PEO in vLLM: MoE layers over DeepEP's low-latency kernels with batched DeepGEMM run in rounds.

vLLM's own `apply` of such a layer runs as ever, on a buffer that turns its dispatch, experts and combine into rounds.
So its ids, scales and shared experts, and what its EPLB counts, are what they are without PEO.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from vllm.utils import deep_gemm
from vllm.v1.worker.ubatching import dbo_enabled

from ...errors import mismatch
from ...peo.cuda import RoundInput
from ...settings.sections import PeoConfig
from ..hooks import Hook
from ..peo import Peo

_peo: Peo | None = None


def set_peo(settings: PeoConfig | None) -> None:
    global _peo
    _peo = None if settings is None else Peo(settings, lambda: deep_gemm)


def refuse_unsuited(parallel_config: Any) -> None:
    """Raises PluginError where PEO and vLLM's own overlap would take the same buffer."""
    if parallel_config.use_ubatching:
        expected = "one of the two: both overlap calls on the one low-latency buffer"
        fix = "remove --enable-dbo and --ubatch-size, or peo:"
        raise mismatch("peo", found="PEO with vLLM's micro-batches (DBO)", expected=expected, fix=fix)


def _apply(
    original: Callable[..., Any], self: Any, hidden_states: torch.Tensor, w1: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    prepare, reason = self.prepare_finalize, _unsuited(self)
    assert _peo is not None, "a PEO hook ran before activate()"
    if reason:
        _peo.off(reason)
        return original(self, hidden_states, w1, *args, **kwargs)
    buffer = prepare.buffer
    with _peo.layer(buffer, len(w1), len(hidden_states), hidden_states.device) as prepare.buffer:
        try:
            return original(self, hidden_states, w1, *args, **kwargs)
        finally:
            prepare.buffer = buffer


def _unsuited(impl: Any) -> str:
    """Why this layer cannot run in rounds; empty if it can."""
    prepare, experts = impl.prepare_finalize, impl.fused_experts
    kinds = type(prepare).__name__, type(experts).__name__
    if kinds != ("DeepEPLLPrepareAndFinalize", "BatchedDeepGemmExperts"):  # the first is importable only with deep_ep
        return f"layers run {kinds[0]} with {kinds[1]}, not DeepEP low-latency with batched DeepGEMM"
    if not prepare.use_fp8_dispatch:
        return "vLLM dispatches BF16 and casts all experts at once"
    if getattr(experts, "_lora_context", None) is not None:
        return "LoRA"
    return "dual-batch overlap (DBO) is running" if dbo_enabled() else ""


def _experts_apply(
    original: Callable[..., Any], self: Any, output: torch.Tensor, hidden_states: torch.Tensor, w1: torch.Tensor,
    w2: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, activation: Any, global_num_experts: int,
    expert_map: torch.Tensor | None, a1q_scale: torch.Tensor | None, a2_scale: torch.Tensor | None,
    workspace13: torch.Tensor, workspace2: torch.Tensor, expert_tokens_meta: Any, apply_router_weight_on_input: bool,
) -> Any:  # fmt: skip
    """Every tensor by its slice of experts.

    `output` and `workspace13` share memory in vLLM, and a row of the workspace is not shorter. So the workspace of a
    round begins behind the output of the rounds before it, which may still be under way to other ranks.
    """
    rounds = None if _peo is None else _peo.running
    shared = (topk_weights, topk_ids, activation, global_num_experts, expert_map)
    if rounds is None:
        return original(
            self, output, hidden_states, w1, w2, *shared, a1q_scale, a2_scale, workspace13, workspace2,
            expert_tokens_meta, apply_router_weight_on_input,
        )  # fmt: skip

    def compute(part: RoundInput) -> torch.Tensor:
        own = slice(part.first, part.end)
        meta = dataclasses.replace(expert_tokens_meta, expert_num_tokens=part.masked_m)
        original(
            _with_experts(self, own), output[own], part.x, w1[own], w2[own], *shared, part.scales, a2_scale,
            workspace13[own], workspace2[own], meta, apply_router_weight_on_input,
        )  # fmt: skip
        return output[own]

    rounds.run_experts(compute)
    return None


def _with_experts(experts: Any, own: slice) -> Any:
    """`experts` with the weights' scales of some of them; the tensors are views, weights that move show in them."""
    config, part = experts.quant_config, copy.copy(experts)
    w1, w2 = (dataclasses.replace(one, scale=one.scale[own]) for one in (config._w1, config._w2))
    part.quant_config = dataclasses.replace(config, _w1=w1, _w2=w2)
    return part


def _masked_gemm(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    rounds = None if _peo is None else _peo.running
    with nullcontext() if rounds is None else rounds.gemm():
        return original(*args, **kwargs)


_MOE = "vllm.model_executor.layers.fused_moe"

PEO = (
    Hook(
        f"{_MOE}.modular_kernel:FusedMoEKernelModularImpl.apply",
        "around",
        "PEO: gives a DeepEP low-latency layer a buffer that works in rounds",
        "(self, hidden_states, w1, w2, topk_ids, topk_weights, activation=<MoEActivation.SILU: 'silu'>, "
        "global_num_experts=-1, expert_map=None, apply_router_weight_on_input=False, shared_experts=None, "
        "shared_experts_input=None)",
        _apply,
    ),
    Hook(
        f"{_MOE}.experts.batched_deep_gemm_moe:BatchedDeepGemmExperts.apply",
        "around",
        "PEO: computes the experts of one round after the other",
        "(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map, "
        "a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input)",
        _experts_apply,
    ),
    Hook(
        f"{_MOE}.experts.batched_deep_gemm_moe:fp8_m_grouped_gemm_nt_masked",
        "around",
        "PEO: leaves SMs to the communication beside a GEMM",
        "(*args, **kwargs)",
        _masked_gemm,
    ),
)
