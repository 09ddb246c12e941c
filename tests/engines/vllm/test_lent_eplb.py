"""Models that vLLM gives no EPLB are given one, on vLLM's own classes; what cannot be moved is refused."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.models.aria import AriaForConditionalGeneration
from vllm.model_executor.models.gpt_oss import GptOssForCausalLM
from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
from vllm.model_executor.models.minimax_m2 import MiniMaxM2ForCausalLM
from vllm.model_executor.models.olmoe import OlmoeForCausalLM
from vllm.model_executor.models.qwen2_moe import Qwen2MoeForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from eplb_plugin import PluginError
from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import lent_eplb, state
from eplb_plugin.engines.vllm.lent_eplb import LOADER, lend, refuse_redundant
from eplb_plugin.engines.vllm.state import Active

LACKING = [OlmoeForCausalLM, Qwen2MoeForCausalLM, GptOssForCausalLM, MiniMaxM2ForCausalLM]
EXPERTS = 8


class Runner(MoERunner):
    """vLLM's, never set up: what the lender and the state ask of one."""

    def __init__(self, number: int, experts: int = EXPERTS) -> None:
        torch.nn.Module.__init__(self)
        self.number, self.router = number, SimpleNamespace(eplb_state=None)
        self.moe_config = SimpleNamespace(
            num_experts=experts, num_logical_experts=EXPERTS, num_local_experts=experts // 2
        )
        self.weight = torch.nn.Parameter(torch.rand(experts // 2, 3))

    @property
    def layer_id(self) -> int:
        return self.number

    def get_expert_weights(self) -> list[torch.Tensor]:
        return [self.weight]


def model_of(model_class: type, *layers: Runner) -> Any:
    """A bare instance of vLLM's class, with these layers somewhere inside."""
    model = model_class.__new__(model_class)
    torch.nn.Module.__init__(model)
    model.body = torch.nn.ModuleList(layers)
    return model


def parallel(redundant: int = 0, strategy: str = "linear") -> Any:
    eplb = SimpleNamespace(num_redundant_experts=redundant)
    return SimpleNamespace(eplb_config=eplb, expert_placement_strategy=strategy)


@pytest.mark.parametrize("model_class", LACKING)
def test_vllm_takes_it_for_one_of_its_own(model_class: type) -> None:
    """Its own check finds the interface, its own method registers every layer's state, in the order of layers."""
    second, first = Runner(5), Runner(2)
    model = model_of(model_class, second, first)
    before = list(model.state_dict())
    assert get_mixture_of_experts_model(model) is None
    lend(model, parallel())
    assert get_mixture_of_experts_model(model) is model
    assert model.moe_layers == [first, second]
    assert (model.num_moe_layers, model.num_routed_experts, model.num_local_physical_experts) == (2, 8, 4)
    maps = torch.arange(2 * EXPERTS).view(2, EXPERTS, 1)
    model.set_eplb_state(torch.zeros(2, EXPERTS), maps, torch.ones(2, EXPERTS))
    assert isinstance(first.eplb_state, EplbLayerState)
    assert torch.equal(second.eplb_state.logical_to_physical_map, maps[1])
    assert [one[0] is layer.weight for one, layer in zip(model.expert_weights, (first, second), strict=True)] == [1, 1]
    assert list(model.state_dict()) == before  # no layer is a part of the model twice


def test_a_model_with_eplb_keeps_its_own() -> None:
    model = Qwen3MoeForCausalLM.__new__(Qwen3MoeForCausalLM)
    torch.nn.Module.__init__(model)
    model.num_moe_layers, model.moe_layers = 1, ["its own"]
    lend(model, parallel(redundant=4))
    assert model.moe_layers == ["its own"]


def test_of_a_multimodal_model_the_language_model_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = model_of(OlmoeForCausalLM, Runner(0))
    outside = model_of(AriaForConditionalGeneration)
    monkeypatch.setattr(AriaForConditionalGeneration, "get_language_model", lambda self: inside)
    lend(outside, parallel())
    assert get_mixture_of_experts_model(outside) is inside


def test_a_model_without_layers_of_vllm_is_left_alone() -> None:
    """The start ends later, with its name."""
    model = model_of(OlmoeForCausalLM)
    lend(model, parallel())
    assert get_mixture_of_experts_model(model) is None


@pytest.mark.parametrize(
    ("layers", "settings", "line"),
    [
        ([Runner(0)], parallel(redundant=2), "num_redundant_experts: found 2, expected 0 for OlmoeForCausalLM, for wh"),
        (
            [Runner(0)],
            parallel(strategy="round_robin"),
            "expert_placement_strategy: found round_robin, expected",
        ),
        (
            [Runner(0), Runner(1, 6)],
            parallel(),
            r"experts of its layers: found \[\(6, 8\), \(8, 8\)\], expected one",
        ),
        (
            [Runner(0, 10)],
            parallel(),
            r"experts of its layers: found \[\(10, 8\)\], expected one number for all",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(layers: list[Runner], settings: Any, line: str) -> None:
    """Before any layer has a state."""
    with pytest.raises(PluginError, match=line):
        lend(model_of(OlmoeForCausalLM, *layers), settings)
    assert not any(layer.router.eplb_state for layer in layers)


@pytest.mark.parametrize("model_class", LACKING)
def test_redundant_experts_are_refused_by_the_class(model_class: type) -> None:
    """Before weights are loaded; models with EPLB, and multimodal ones, of which the class does not tell, pass."""
    with pytest.raises(PluginError, match=f"found 4, expected 0 for {model_class.__name__}, .*; fix: --eplb-config"):
        refuse_redundant(model_class, 4)
    refuse_redundant(model_class, 0)
    refuse_redundant(Qwen3MoeForCausalLM, 4)
    refuse_redundant(AriaForConditionalGeneration, 4)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """vLLM's loader, whose work is not done here: its hook is in force."""
    monkeypatch.setattr(BaseModelLoader, "load_model", lambda self, vllm_config, model_config, prefix="": self.loaded)
    monkeypatch.setattr(lent_eplb, "LOADER", LOADER)
    kind = type("Loader", (BaseModelLoader,), {"download_model": None, "load_weights": None})
    hooks.apply([LOADER])
    yield kind
    hooks.remove([LOADER])


def test_the_target_is_lent_it_and_a_draft_is_not(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the model's configuration, whichever of vLLM's configurations comes with it."""
    target, draft = model_of(OlmoeForCausalLM, Runner(0)), model_of(OlmoeForCausalLM, Runner(0))
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(), parallel_config=parallel())
    monkeypatch.setattr(state, "_active", Active(None, vllm_config))  # type: ignore[arg-type]
    one = loader.__new__(loader)
    one.loaded = draft
    assert one.load_model(vllm_config=vllm_config, model_config=SimpleNamespace()) is draft
    assert get_mixture_of_experts_model(draft) is None
    one.loaded = target
    assert one.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config) is target
    assert get_mixture_of_experts_model(target) is target
