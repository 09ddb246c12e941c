"""What the plugin must know of a vLLM model's MoE layers, read from the layers; unknown kinds are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from ...errors import PluginError, mismatch
from ...migration.layout import ExpertRows, expert_rows, refuse_derived

NO_EXPERTS = ("e_score_correction_bias", "hash_indices_table")  # of logical experts, or of tokens
INPUT_SCALES = ("w13_input_scale", "w2_input_scale")  # one value broadcast over the experts
_USE_VANILLA = "use vLLM's own EPLB for this model: remove the plugin's settings"


@dataclass(frozen=True)
class MoeLayers:
    """owner_group_size: consecutive EP ranks that route the same token (see DESIGN, token-owner groups).
    chunk: under sequence parallelism this rank routes the chunk-th part of the batch, else 0.
    """

    layer_ids: list[int]
    routers: list[BaseRouter]
    top_k: int
    owner_group_size: int
    chunk: int


def inspect_layers(model: Any, tensor_parallel_size: int) -> MoeLayers:
    """Read the MoE layers of a `MixtureOfExperts` model.

    Raises PluginError for a layer whose routing the plugin cannot see or cannot attribute to ranks.
    """
    layers = list(model.moe_layers)
    for layer in layers:
        _refuse_unseen(layer)
    routers = [layer.router for layer in layers]
    parallel = [layer.moe_config.moe_parallel_config for layer in layers]
    groups = {owner_group_size(one, tensor_parallel_size) for one in parallel}
    top_ks = {router.top_k for router in routers}
    for what, found in (("token-owner group sizes", groups), ("top-k", top_ks)):
        if len(found) != 1:
            raise mismatch(what, found=sorted(found), expected="one value for all layers", fix=_USE_VANILLA)
    sequence_parallel = parallel[0].is_sequence_parallel
    return MoeLayers(
        layer_ids=[int(layer.layer_id) for layer in layers],
        routers=routers,
        top_k=top_ks.pop(),
        owner_group_size=groups.pop(),
        chunk=parallel[0].ep_rank % tensor_parallel_size if sequence_parallel else 0,
    )


def owner_group_size(parallel: Any, tensor_parallel_size: int) -> int:
    """Consecutive EP ranks that route the same token; `parallel` is vLLM's FusedMoEParallelConfig of a layer.

    Without an all-to-all every rank sees every token. With one, the ranks of a TP group hold the same tokens unless
    the layer is sequence-parallel (GLM-4-MoE and Mixtral are not, Qwen3-MoE is).
    """
    if not parallel.use_all2all_kernels:
        return int(parallel.ep_size)
    return 1 if parallel.is_sequence_parallel else tensor_parallel_size


def movable(layer: MoERunner) -> ExpertRows:
    """What moves with the experts of a layer. Raises PluginError, with the layer's name, for what might have to."""
    experts = layer.routed_experts
    slots = int(experts.local_num_experts)
    shared = NO_EXPERTS + (INPUT_SCALES if slots == 1 else ())  # else their stride tells
    try:
        tensors = dict(experts.named_parameters())
        refuse_derived(experts, tensors, slots)
        return expert_rows(tensors, slots, shared)
    except PluginError as error:
        raise PluginError(f"{layer.layer_name}: {error}") from None


def _refuse_unseen(layer: Any) -> None:
    fix = _USE_VANILLA
    if not isinstance(layer, MoERunner):  # e.g. the MegaMoE layers of DeepSeek-V4 and Kimi-K3, which map ids themselves
        raise mismatch("MoE layer", found=type(layer).__name__, expected="vLLM's MoERunner", fix=fix)
    name = layer.layer_name
    method = type(layer.routed_experts.quant_method).__name__
    if not isinstance(layer.router, BaseRouter):
        raise mismatch(name, found=f"router {type(layer.router).__name__}", expected="vLLM's BaseRouter", fix=fix)
    if layer.router.eplb_state is None:
        raise mismatch(name, found="a router without EPLB state", expected="one state per MoE layer", fix=fix)
    if layer.is_monolithic:
        raise mismatch(name, found=f"{method}, a kernel that routes inside", expected="routing by the router", fix=fix)
    if layer.do_naive_dispatch_combine:
        raise mismatch(name, found=f"{method}, routing after the gather", expected="routing of own tokens", fix=fix)
