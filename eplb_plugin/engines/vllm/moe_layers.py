"""What the plugin must know of a vLLM model's MoE layers, read from the layers; unknown kinds are refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from ...errors import PluginError, mismatch
from ...migration.layout import ExpertRows, expert_rows
from ...migration.unmoved import INPUT_SCALES, Unmoved, unmoved
from .compat import MAPS, is_mega_moe, maps_by_name

NO_EXPERTS = ("e_score_correction_bias", "hash_indices_table")  # of logical experts, or of tokens
_PER_CALL = ("prepare_finalize",)  # the all-to-all's, whose buffers have an entry per rank
_USE_VANILLA = "use vLLM's own EPLB for this model: remove the plugin's settings"


@dataclass(frozen=True)
class MoeLayers:
    """states: where each layer looks experts up.
    owner_group_size: consecutive EP ranks that route the same token: a token-owner group.
    chunk: under sequence parallelism this rank routes the chunk-th part of the batch, else 0.
    """

    layer_ids: list[int]
    states: list[EplbLayerState]
    top_k: int
    owner_group_size: int
    chunk: int


def no_experts(model: str) -> PluginError:
    fix = "serve it without --enable-eplb and the plugin's settings"
    return mismatch(
        "model", found=f"{model}, for which vLLM has no EPLB", expected="a model whose MoE layers are vLLM's", fix=fix
    )


def inspect_layers(model: Any, tensor_parallel_size: int) -> MoeLayers:
    """Read the MoE layers of a `MixtureOfExperts` model.

    Raises PluginError for a layer whose routing the plugin cannot see or cannot attribute to ranks.
    """
    layers = list(model.moe_layers)
    if layers and all(is_mega_moe(layer) for layer in layers):
        blocks = zip(layers, model.moe_mlp_layers, strict=True)
        kinds = {_of_mega_moe(layer, block, tensor_parallel_size) for layer, block in blocks}
    else:
        for layer in layers:
            _refuse_unseen(layer)
        kinds = {_of_runner(layer, tensor_parallel_size) for layer in layers}
    for column, what in enumerate(("top-k", "token-owner group sizes", "parts of the batch")):
        found = {kind[column] for kind in kinds}
        if len(found) != 1:
            raise mismatch(what, found=sorted(found), expected="one value for all layers", fix=_USE_VANILLA)
    return MoeLayers([int(layer.layer_id) for layer in layers], [layer.eplb_state for layer in layers], *kinds.pop())


class _Kind(NamedTuple):
    """What all layers of a model must have in common."""

    top_k: int
    owner_group_size: int
    chunk: int


def _of_runner(layer: MoERunner, tensor_parallel_size: int) -> _Kind:
    parallel = layer.moe_config.moe_parallel_config
    chunk = parallel.ep_rank % tensor_parallel_size if parallel.is_sequence_parallel else 0
    return _Kind(layer.router.top_k, owner_group_size(parallel, tensor_parallel_size), chunk)


def _of_mega_moe(layer: Any, block: Any, tensor_parallel_size: int) -> _Kind:
    """MegaMoE sends and gets back every rank's own rows; without sequence parallelism a TP group has the same rows.

    block: the layer around the experts, which knows whether its rows are a part of the batch.
    """
    if not hasattr(block, "use_sequence_parallel"):
        found, expected = f"a {type(block).__name__} that does not say so", "use_sequence_parallel"
        raise mismatch("sequence parallelism", found=found, expected=expected, fix=_USE_VANILLA)
    if not maps_by_name(type(layer).forward.__module__):  # a kind of its own, whose ids no hook would see
        raise mismatch(layer.prefix, found=f"a {type(layer).__name__}", expected=f"one by {MAPS}", fix=_USE_VANILLA)
    if not block.use_sequence_parallel:
        return _Kind(layer.top_k, tensor_parallel_size, 0)
    ep_rank = layer.experts_start_idx // layer.num_local_experts
    return _Kind(layer.top_k, 1, ep_rank % tensor_parallel_size)


def owner_group_size(parallel: Any, tensor_parallel_size: int) -> int:
    """Consecutive EP ranks that route the same token; `parallel` is vLLM's FusedMoEParallelConfig of a layer.

    Without an all-to-all every rank sees every token. With one, the ranks of a TP group hold the same tokens unless
    the layer is sequence-parallel (GLM-4-MoE and Mixtral are not, Qwen3-MoE is).
    """
    if not parallel.use_all2all_kernels:
        return int(parallel.ep_size)
    return 1 if parallel.is_sequence_parallel else tensor_parallel_size


def movable(layer: Any) -> ExpertRows:
    """What moves with the experts of a layer. Raises PluginError, with the layer's name, for what might have to."""
    name, _, tensors, slots = _experts_of(layer)
    shared = NO_EXPERTS + (INPUT_SCALES if slots == 1 else ())  # else their stride tells
    try:
        return expert_rows(tensors, slots, shared)
    except PluginError as error:
        raise PluginError(f"{name}: {error}") from None


def left_behind(layers: Iterable[Any]) -> dict[str, Unmoved]:
    """By layer, what does not move with its experts. Raises PluginError for what describes single ones of them."""
    found = {}
    for layer in layers:
        name, experts, tensors, slots = _experts_of(layer)
        try:
            found[name] = unmoved(experts, tensors, {slots}, _PER_CALL)
        except PluginError as error:
            raise PluginError(f"{name}: {error}") from None
    return found


def _experts_of(layer: Any) -> tuple[str, Any, dict[str, torch.Tensor], int]:
    """Name, the object that keeps the experts of this rank, its tensors, and how many experts."""
    if is_mega_moe(layer):  # its parameters are gone: what it made of them is what vLLM moves, too
        tensors = {f"expert weights {index}": one for index, one in enumerate(layer.get_expert_weights())}
        return layer.prefix, [*layer.parameters(), *layer.buffers()], tensors, int(layer.num_local_experts)
    experts = layer.routed_experts
    return layer.layer_name, experts, dict(experts.named_parameters()), int(experts.local_num_experts)


def _refuse_unseen(layer: Any) -> None:
    fix = _USE_VANILLA
    if not isinstance(layer, MoERunner):
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
