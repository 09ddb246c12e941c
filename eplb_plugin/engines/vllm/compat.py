"""What differs in shape between vLLM 0.28 and 0.33: every object is asked what it is, and no release for its number."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch


class Kind(NamedTuple):
    """A class of a module that is not imported only to ask for it."""

    module: str
    name: str


# MegaMoE's layers, from the newest release back; Kimi-K3's is one of them, or derives from the older one
MEGA_MOE = (
    Kind("vllm.model_executor.layers.fused_moe.deep_gemm_mega_moe", "DeepGemmMegaMoEExperts"),
    Kind("vllm.models.deepseek_v4.nvidia.model", "DeepseekV4MegaMoEExperts"),
)

MAPS = "eplb_map_to_physical_and_record"  # the function by which all layers map ids


def maps_by_name(module: str) -> bool:
    """Whether a module that is loaded holds the function that maps ids, under its name."""
    return hasattr(sys.modules.get(module), MAPS)


def is_mega_moe(layer: Any) -> bool:
    """Whether a layer is a MegaMoE of DeepSeek-V4 or Kimi-K3."""
    for kind in MEGA_MOE:
        found = getattr(sys.modules.get(kind.module), kind.name, None)
        if found is not None and isinstance(layer, found):
            return True
    return False


def load_buffer(model_state: Any) -> torch.Tensor:
    """[L, P] what vLLM counts into. From 0.30 on a wider buffer, of which the counts of a pass are a part."""
    if hasattr(model_state, "expert_load_pass_buffer"):
        return model_state.expert_load_pass_buffer
    return model_state.expert_load_pass


def is_draft(model_config: Any, vllm_config: Any) -> bool:
    """Whether a model that vLLM registers is the draft. Before 0.32 nothing else tells: no name was passed for it."""
    speculative = vllm_config.speculative_config
    return speculative is not None and model_config is speculative.draft_model_config
