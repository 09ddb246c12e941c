"""The tensors of a model's experts, by name: what has to move with an expert, and what must not be left behind."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

from ...errors import mismatch
from ...migration.layout import ExpertRows, expert_rows, refuse_derived

_FIX = "use SGLang's own EPLB for this model, and report it"


def expert_layers(model: Any, layer_ids: list[int], num_slots: int, canaries: torch.Tensor | None) -> list[ExpertRows]:
    """Of every MoE layer, what moves with an expert. num_slots: routed experts of this rank.

    canaries: [MoE layers, num_slots] or None, one more tensor that moves with the experts of each layer.
    Raises PluginError, naming layer and tensor, for one that it is not certain how to move.
    """
    rows = []
    for row, module in enumerate(_modules(model, layer_ids)):
        tensors, shared = _tensors_of(module, num_slots)
        if canaries is not None:
            tensors["canary"] = canaries[row]
        rows.append(expert_rows(tensors, num_slots, shared))
    return rows


def refuse_left_behind(model: Any, layer_ids: list[int], layers: list[ExpertRows]) -> None:
    """Raises PluginError for what describes experts and is not in `layers`, before the model has run.

    That is per-expert state beside a layer's tensors, or a tensor that SGLang's own updater would move. (Once the model
    has run, dispatchers keep counts by expert, which look the same.)
    """
    for layer, module, rows in zip(layer_ids, _modules(model, layer_ids), layers, strict=True):
        for size in {rows.num_slots, module.num_local_experts}:
            refuse_derived(module, dict([*module.named_parameters(), *module.named_buffers()]), size)
        known = {matrix.data_ptr() for matrix in rows.matrices}
        for tensor in model.routed_experts_weights_of_layer[layer]:
            if tensor.numel() and tensor.stride(0) and tensor.data_ptr() not in known:
                found = f"{list(tensor.shape)} {tensor.dtype} that SGLang moves"
                raise mismatch(f"layer {layer}", found=found, expected="a parameter of its experts", fix=_FIX)


def _modules(model: Any, layer_ids: list[int]) -> list[Any]:
    found = {one.layer_id: one for one in model.modules() if isinstance(one, FusedMoE) and not one.is_draft}
    for layer in layer_ids:
        if layer not in found:
            raise mismatch(f"layer {layer}", found="no FusedMoE", expected="experts that the plugin knows", fix=_FIX)
    return [found[layer] for layer in layer_ids]


def _tensors_of(module: Any, num_slots: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """By name, without the slots of fused shared experts, which follow those of routed ones and stay; and which of
    them SGLang keeps whole on every rank, because they are indexed by all experts and used up while it loads.
    """
    tensors, shared = {}, []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        title = f"layer {module.layer_id}: {name}"
        per_expert = tensor.dim() > 0 and tensor.shape[0] == module.num_local_experts
        tensors[title] = tensor.detach()[:num_slots] if per_expert else tensor.detach()
        if name == "correction_bias" or getattr(tensor, "_sglang_require_global_experts", False):
            shared.append(title)
    return tensors, shared
