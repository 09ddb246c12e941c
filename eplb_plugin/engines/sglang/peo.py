"""PEO in SGLang: MoE layers over DeepEP's low-latency kernels with FP8 DeepGEMM run in rounds.

SGLang's own `forward_impl` of such a layer runs as ever, on a buffer that turns its dispatch, experts and combine into
rounds. So what it records for EPLB, its dispatch hooks and its shared experts are what they are without PEO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from sglang.srt.runtime_context import get_exec

from ...errors import mismatch
from ...peo.cuda import RoundInput
from ...settings.sections import PeoConfig
from ..hooks import Hook
from ..peo import Peo

_peo: Peo | None = None


def set_peo(settings: PeoConfig | None) -> None:
    global _peo
    _peo = None if settings is None else Peo(settings, lambda: import_module("deep_gemm"))


def refuse_unsuited() -> None:
    """Raises PluginError where PEO and an overlap of SGLang's own would take the same buffer."""
    for number in ("two", "single"):
        if getattr(get_exec().overlap, f"enable_{number}_batch_overlap"):
            option = f"--enable-{number}-batch-overlap"
            expected = "one of the two: both overlap calls on the one low-latency buffer"
            raise mismatch("peo", found=f"PEO with {option}", expected=expected, fix=f"remove {option}, or peo:")


def _forward_impl(
    original: Callable[..., Any], self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    assert _peo is not None, "a PEO hook ran before activate()"
    reason = _unsuited(self)
    if reason is None:
        return original(self, hidden_states, *args, **kwargs)
    if reason:
        _peo.off(reason)
        return original(self, hidden_states, *args, **kwargs)
    buffer = self.dispatcher._inners[0]._get_impl()._get_buffer()
    with _peo.layer(buffer, self.num_local_experts, len(hidden_states), hidden_states.device):
        return original(self, hidden_states, *args, **kwargs)


def _unsuited(layer: Any) -> str | None:
    """Why this layer cannot run in rounds; empty if it can, None in a pass of prefill, which is not meant to."""
    inners = getattr(layer.dispatcher, "_inners", [])
    if len(inners) != 1 or type(inners[0]).__name__ != "DeepEPDispatcher":
        return f"layers dispatch by {len(inners) or 1} × {type((inners or [layer.dispatcher])[0]).__name__}, not DeepEP"
    impl, runner = inners[0]._get_impl(), layer.runner
    if type(impl).__name__ != "_DeepEPDispatcherImplLowLatency":
        return None
    if not impl.use_fp8 or runner is None or not runner.runner_backend.is_deep_gemm():
        return "layers do not dispatch FP8 for the runner deep_gemm"
    if layer.w13_weight.dtype != torch.float8_e4m3fn:
        return "expert weights are not FP8"
    return "single-batch overlap (SBO) is running" if impl.overlap_args is not None else ""


def _get_buffer(original: Callable[..., Any], self: Any) -> Any:
    buffer = original(self)
    return buffer if _peo is None or _peo.running is None else _peo.running


def _run(original: Callable[..., Any], self: Any, dispatch_output: Any, quant_info: Any, lora_info: Any = None) -> Any:
    rounds = None if _peo is None else _peo.running
    if rounds is None:
        return original(self, dispatch_output, quant_info, lora_info)
    last = None

    def compute(part: RoundInput) -> torch.Tensor:
        nonlocal last
        own = slice(part.first, part.end)
        received = dispatch_output._replace(
            hidden_states=part.x, hidden_states_scale=part.scales, masked_m=part.masked_m
        )
        last = original(self, received, _with_experts(quant_info, own), lora_info)
        return last.hidden_states

    rounds.run_experts(compute)
    return last  # its ids and weights are those of all rounds; the buffer has kept the rows of each


def _with_experts(quant_info: Any, own: slice) -> Any:
    """quant_info of some experts; the tensors are views, weights that move show in them."""
    names = ("w13_weight", "w2_weight", "w13_scale", "w2_scale")
    return dataclasses.replace(quant_info, **{name: getattr(quant_info, name)[own] for name in names})


def _masked_gemm(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    rounds = None if _peo is None else _peo.running
    with nullcontext() if rounds is None else rounds.gemm():
        return original(*args, **kwargs)


PEO = (
    Hook(
        "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE.forward_impl",
        "around",
        "PEO: runs a DeepEP low-latency layer on a buffer that works in rounds",
        "(self, hidden_states, topk_output, pre_quant_input=None)",
        _forward_impl,
    ),
    Hook(
        "sglang.srt.layers.moe.token_dispatcher.deepep:_DeepEPDispatcherImplLowLatency._get_buffer",
        "around",
        "PEO: hands that buffer to the dispatcher",
        "(self)",
        _get_buffer,
    ),
    Hook(
        "sglang.srt.layers.moe.moe_runner.runner:MoeRunner.run",
        "around",
        "PEO: computes the experts of one round after the other",
        "(self, dispatch_output, quant_info, lora_info=None)",
        _run,
    ),
    Hook(
        "sglang.srt.layers.deep_gemm_wrapper.entrypoint:grouped_gemm_nt_f8f8bf16_masked",
        "around",
        "PEO: leaves SMs to the communication beside a GEMM",
        "(lhs, rhs, out, masked_m, expected_m, overlap_args=None, max_block_n=256, recipe_a=None, recipe_b=None)",
        _masked_gemm,
    ),
)
