"""EPLB for models that vLLM gives none (OLMoE, Qwen2-MoE, gpt-oss, MiniMax-M2 and others): rearranged, not replicated.

Their MoE layers are vLLM's own; what is missing is the model's interface and a state in every router. Both are added
to the loaded model, before vLLM asks it for them. Its loader knows no redundant experts, so that there are none: every
expert has one slot, and moves.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.models.interfaces import MixtureOfExperts, get_mixture_of_experts_model, supports_multimodal

from ...errors import PluginError, mismatch
from ..hooks import Hook
from .state import get_active

REDUNDANT = "--eplb-config.num_redundant_experts"


def refuse_redundant(model_class: Any, redundant: int) -> None:
    """Raises PluginError where experts should be replicated of a model class that vLLM gives no EPLB.

    Of a multimodal model only the loaded language model can tell, so it passes here.
    """
    if not hasattr(model_class, "set_eplb_state") and not supports_multimodal(model_class):
        _refuse_redundant(model_class.__name__, redundant)


def _refuse_redundant(model: str, redundant: int) -> None:
    if redundant:
        expected = f"0 for {model}, for which vLLM has no EPLB: its experts can be moved, but not replicated"
        raise mismatch("num_redundant_experts", found=redundant, expected=expected, fix=f"{REDUNDANT} 0")


def lend(model: Any, parallel_config: Any) -> None:
    """Make a loaded model a MixtureOfExperts of vLLM, if it has MoE layers of vLLM's and is none yet.

    Raises PluginError for layers that cannot be given what EPLB needs.
    """
    if get_mixture_of_experts_model(model) is not None:
        return
    model = model.get_language_model() if supports_multimodal(model) else model
    layers = sorted((one for one in model.modules() if isinstance(one, MoERunner)), key=lambda one: one.layer_id)
    if not layers:  # the start ends with its name
        return
    title = type(model).__name__
    _refuse_redundant(title, parallel_config.eplb_config.num_redundant_experts)
    if parallel_config.expert_placement_strategy != "linear":
        raise _unfit("expert_placement_strategy", parallel_config.expert_placement_strategy, "linear", title)
    sizes = {(one.moe_config.num_experts, one.moe_config.num_logical_experts) for one in layers}
    (experts, logical), *others = sizes
    if others or experts != logical:
        raise _unfit("experts of its layers", sorted(sizes), "one number for all layers, none shared", title)
    for layer in layers:
        layer.router.eplb_state = EplbLayerState()
    interface = {
        "expert_weights": [],
        "moe_layers": layers,
        "num_moe_layers": len(layers),
        "num_expert_groups": 1,
        "num_logical_experts": experts,
        "num_physical_experts": experts,
        "num_local_physical_experts": layers[0].moe_config.num_local_experts,
        "num_routed_experts": experts,
        "num_shared_experts": 0,
        "num_redundant_experts": 0,
        "set_eplb_state": MethodType(MixtureOfExperts.set_eplb_state, model),
        "update_physical_experts_metadata": MethodType(MixtureOfExperts.update_physical_experts_metadata, model),
    }
    for name, value in interface.items():
        setattr(model, name, value)


def _unfit(what: str, found: object, expected: str, model: str) -> PluginError:
    fix = f"serve {model}, for which vLLM has no EPLB, without --enable-eplb and the plugin's settings"
    return mismatch(what, found=found, expected=expected, fix=fix)


def _load_model(
    original: Callable[..., Any], self: Any, vllm_config: Any, model_config: Any, *prefix: Any, **named: Any
) -> Any:
    model = original(self, vllm_config, model_config, *prefix, **named)
    active = get_active().vllm_config
    if model_config is active.model_config:  # drafts stay as vLLM has them
        lend(model, active.parallel_config)
    return model


LOADER = Hook(
    "vllm.model_executor.model_loader.base_loader:BaseModelLoader.load_model",
    "around",
    "makes a model that vLLM gives no EPLB one whose experts can be moved",
    "(self, vllm_config, model_config, prefix='')",
    _load_model,
)
