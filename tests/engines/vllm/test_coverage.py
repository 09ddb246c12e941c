"""Which of vLLM's MoE models its EPLB knows, read from its registry: the others have no redundant experts."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import vllm.plugins
from vllm.model_executor.models.interfaces import MixtureOfExperts, supports_multimodal
from vllm.model_executor.models.registry import ModelRegistry

from eplb_plugin.engines.vllm.lent_eplb import refuse_redundant
from eplb_plugin.errors import PluginError

ROOT = Path(find_spec("vllm").origin or "").parent.parent  # type: ignore[union-attr]


@cache
def moe_classes() -> dict[str, type]:
    """Architecture -> class, of modules that name vLLM's MoE layers and can be imported on a CPU."""
    vllm.plugins.plugins_loaded = True  # other plugins stay out of this process
    found = {}
    for architecture, model in ModelRegistry.models.items():
        module = ROOT / (model.module_name.replace(".", "/") + ".py")
        if module.exists() and "fused_moe" in module.read_text():
            try:
                found[architecture] = model.load_model_cls()
            except ImportError:  # needs a GPU's or an image library
                continue
    return found


def refused(model_class: type) -> bool:
    try:
        refuse_redundant(model_class, 1)
    except PluginError:
        return True
    return False


@pytest.mark.parametrize(
    "architecture",
    [
        "DeepseekV3ForCausalLM",
        "Glm4MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "MixtralForCausalLM",
        "Qwen3NextForCausalLM",
    ],
)
def test_models_with_eplb_may_have_replicas(architecture: str) -> None:
    """Those that the plugin's configs and documents name."""
    assert not refused(moe_classes()[architecture])


def test_others_are_lent_it_exactly_where_the_class_is_no_mixture_of_experts() -> None:
    """Of all MoE classes in vLLM's registry: those that EPLB registers may have replicas, the others are rearranged."""
    classes = moe_classes()
    assert len(classes) > 40
    for architecture, model_class in classes.items():
        if not supports_multimodal(model_class):
            assert refused(model_class) == (MixtureOfExperts not in model_class.__mro__), architecture
    assert {"OlmoeForCausalLM", "Qwen2MoeForCausalLM", "GptOssForCausalLM", "MiniMaxM2ForCausalLM"} <= classes.keys()
