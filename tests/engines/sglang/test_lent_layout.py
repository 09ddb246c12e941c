"""Models whose classes tell SGLang no expert layout: it is told by their configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt import model_loader
from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation
from sglang.srt.models.mixtral import MixtralForCausalLM
from sglang.srt.models.olmoe import OlmoeForCausalLM
from sglang.srt.models.qwen3_moe import Qwen3MoeForCausalLM
from transformers import LlamaConfig, MixtralConfig, OlmoeConfig, PretrainedConfig, Qwen3MoeConfig

from eplb_plugin.engines import hooks
from eplb_plugin.engines.sglang.lent_layout import LAYOUT

Ask = Callable[[type, PretrainedConfig], ModelConfigForExpertLocation | None]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """SGLang's question about a model of this class and configuration, with the hook in force."""

    def of(model_class: type, config: PretrainedConfig) -> ModelConfigForExpertLocation | None:
        monkeypatch.setattr(model_loader, "get_model_architecture", lambda model_config: (model_class, ""))
        found: Any = ModelConfigForExpertLocation.from_model_config(SimpleNamespace(hf_config=config))  # type: ignore[arg-type]
        return found

    hooks.apply([LAYOUT])
    yield of
    hooks.remove([LAYOUT])


@pytest.mark.parametrize(
    ("model_class", "config", "layers"),
    [
        (MixtralForCausalLM, MixtralConfig(num_hidden_layers=5, num_local_experts=8), 5),
        (OlmoeForCausalLM, OlmoeConfig(num_hidden_layers=3, num_experts=8), 3),
    ],
)
def test_the_configuration_tells(ask: Ask, model_class: type, config: PretrainedConfig, layers: int) -> None:
    """Decoder layers and experts, whatever the configuration calls them; one group."""
    assert not hasattr(model_class, "get_model_config_for_expert_location")
    assert ask(model_class, config) == ModelConfigForExpertLocation(layers, 8, None)


def test_a_class_that_tells_is_asked_alone(ask: Ask) -> None:
    config = Qwen3MoeConfig(num_hidden_layers=4, num_experts=16)
    expected = Qwen3MoeForCausalLM.get_model_config_for_expert_location(config)
    assert ask(Qwen3MoeForCausalLM, config) == expected


def test_a_model_without_experts_has_none(ask: Ask) -> None:
    """Nor one whose number of layers is not said: the start ends with its name."""
    assert ask(MixtralForCausalLM, LlamaConfig()) is None
    config = PretrainedConfig()
    config.num_experts = 8
    assert ask(MixtralForCausalLM, config) is None
