"""What the plugin must know of an SGLang model's MoE layers, read from their routers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.hash_topk import HashTopK
from sglang.srt.layers.moe.topk import TopK, TopKOutputFormat

from ...errors import mismatch

_USE_VANILLA = "use SGLang's own EPLB for this model: remove the plugin's settings"
_EMPTY = "empty_topk_output"
_SEEN = (None, TopKOutputFormat.STANDARD)


@dataclass(frozen=True)
class MoeLayers:
    """layer_ids: decoder-layer numbers of the MoE layers, increasing. top_k: routed experts per token."""

    layer_ids: list[int]
    top_k: int


def inspect_layers(model: Any, num_slots: int) -> MoeLayers:
    """Read the routers of a loaded model.

    Raises PluginError for a layer whose routing the plugin cannot see, or that has not the slots of the placement.
    """
    top_k_of: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, FusedMoE) and module.num_global_routed_experts != num_slots:
            # some models of SGLang (GLM-4-MoE, Mixtral) ignore the flag, and fail in their first forward pass
            found, fix = f"{module.num_global_routed_experts} slots", "--ep-num-redundant-experts 0"
            raise mismatch(f"layer {module.layer_id}", found=found, expected=num_slots, fix=fix)
        if not isinstance(module, (TopK, HashTopK)) or module.is_draft:
            continue
        if isinstance(module, TopK):
            config = module.topk_config
            if config.output_format not in _SEEN:
                found = f"{config.output_format.name}, routing inside the expert kernel"
                raise mismatch(f"layer {module.layer_id}", found=found, expected="routing before it", fix=_USE_VANILLA)
            top_k_of[module.layer_id] = config.top_k - config.num_shared_topk_slots
        else:
            top_k_of[module.layer_id] = module.topk - module.num_shared_topk_slots
    if len(set(top_k_of.values())) != 1:
        found = f"top-k {sorted(set(top_k_of.values()))}" if top_k_of else "no router of SGLang's"
        raise mismatch("MoE layers", found=found, expected="one top-k for all layers", fix=_USE_VANILLA)
    return MoeLayers(sorted(top_k_of), next(iter(top_k_of.values())))


def refuse_skipping(model: Any) -> None:
    """Raises PluginError for a model of which a rank without tokens may leave a MoE layer out, when others exchange
    counts in it. The text of a layer that does not asks its router for an empty output.
    """
    routing = {
        type(block): name
        for name, block in model.named_modules()
        if any(isinstance(one, (TopK, HashTopK)) and not one.is_draft for one in block.children())
    }
    for kind, name in routing.items():
        if not _asks(kind):
            found, expected = f"{kind.__name__} ({name})", f"layers that ask for {_EMPTY} on idle ranks"
            raise mismatch("exact", found=found, expected=expected, fix="exact: null")


def _asks(kind: type) -> bool:
    return any(_EMPTY in inspect.getsource(base) for base in kind.__mro__ if base is not object)
