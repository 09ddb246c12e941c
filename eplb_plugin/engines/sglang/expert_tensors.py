"""The tensors of a model's experts, by name: what has to move with an expert, and what must not be left behind."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

from ...errors import PluginError, mismatch
from ...migration.layout import ExpertRows, expert_rows
from ...migration.unmoved import Unmoved, unmoved

_FIX = "use SGLang's own EPLB for this model, and report it"
# The all-to-all's, whose buffers have an entry per rank and whose counts change; and what CUTLASS kernels write anew in
# every call, and is not set before the first: sizes and offsets of the groups of tokens, and addresses of their parts.
_PER_CALL = (
    "dispatcher", "problem_sizes1", "problem_sizes2", "expert_offsets", "blockscale_offsets", "layout_sfa",
    "layout_sfb", "a_ptr", "b_ptr", "out_ptr", "a_scales_ptr", "b_scales_ptr", "a_ptrs", "b_ptrs", "out_ptrs",
    "a_scales_ptrs", "b_scales_ptrs", "alpha_ptrs",
)  # fmt: skip


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


def left_behind(model: Any, layer_ids: list[int], layers: list[ExpertRows]) -> dict[str, Unmoved]:
    """By layer, what does not move with the experts in `layers`: it has to be the same on all ranks.

    Raises PluginError for what describes experts and is not in `layers`: per-expert state beside a layer's tensors.
    """
    found = {}
    for layer, module, rows in zip(layer_ids, _modules(model, layer_ids), layers, strict=True):
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        try:
            found[f"layer {layer}"] = unmoved(module, tensors, {rows.num_slots, module.num_local_experts}, _PER_CALL)
        except PluginError as error:
            raise PluginError(f"layer {layer}: {error}") from None
    return found


def refuse_unlisted(model: Any, layer_ids: list[int], layers: list[ExpertRows]) -> None:
    """Raises PluginError for a tensor that SGLang's own updater would move and that is not in `layers`. Some models
    (GLM-4-MoE, Mixtral) name it none, so that SGLang alone cannot move their experts.

    Only as the model was loaded first: its list is made once, and goes on naming tensors that were made anew since.
    """
    listed = getattr(model, "routed_experts_weights_of_layer", {})
    for layer, rows in zip(layer_ids, layers, strict=True):
        known = {matrix.data_ptr() for matrix in rows.matrices}
        for tensor in listed.get(layer, ()):
            if tensor.numel() and tensor.stride(0) and tensor.data_ptr() not in known:
                what = f"{list(tensor.shape)} {tensor.dtype} that SGLang moves"
                raise mismatch(f"layer {layer}", found=what, expected="a parameter of its experts", fix=_FIX)


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
