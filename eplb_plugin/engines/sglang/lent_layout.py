"""An expert layout for models that tell SGLang none (Mixtral, OLMoE, Ernie-4.5, Granite-MoE and others).

SGLang's EPLB asks a model's class how many layers and experts it has. Where the class does not say, the model's
configuration does. The layers are SGLang's own, so that nothing else is missing: their loader and their routers know
the maps. Such a model's own code knows no redundant experts, and must be started without any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation

from ...errors import PluginError
from ...workloads.model_config import shape_in
from ..hooks import Hook


def _from_model_config(original: Callable[..., Any], model_config: Any) -> ModelConfigForExpertLocation | None:
    found: ModelConfigForExpertLocation | None = original(model_config)
    return told_by_config(model_config) if found is None else found


def told_by_config(model_config: Any) -> ModelConfigForExpertLocation | None:
    """None: the configuration names no experts either."""
    try:
        shape = shape_in(model_config.hf_config.to_dict(), "the model's configuration")
    except PluginError:
        return None
    if shape.num_layers is None:
        return None
    return ModelConfigForExpertLocation(num_layers=shape.num_layers, num_logical_experts=shape.num_experts)


LAYOUT = Hook(
    "sglang.srt.eplb.expert_location:ModelConfigForExpertLocation.from_model_config",
    "around",
    "tells the expert layout of models whose classes do not, from their configurations",
    "(model_config)",
    _from_model_config,
)
