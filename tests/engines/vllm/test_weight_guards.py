"""The hooks on vLLM's own Worker, as far as a CPU can run its methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.model_executor.models.aria import AriaForConditionalGeneration
from vllm.model_executor.models.gpt_oss import GptOssForCausalLM
from vllm.model_executor.models.olmoe import OlmoeForCausalLM
from vllm.model_executor.models.qwen2_moe import Qwen2MoeForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.gpu_worker import Worker

from engines.vllm.engine_configs import engine_config
from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import state
from eplb_plugin.engines.vllm.weight_guards import WEIGHT_GUARDS
from eplb_plugin.errors import PluginError


@pytest.fixture(autouse=True)
def hooked() -> Iterator[None]:
    hooks.apply(WEIGHT_GUARDS)
    yield
    hooks.remove(WEIGHT_GUARDS)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's Worker without a device."""
    monkeypatch.setattr(gpu_worker, "set_torch_threads_for_runtime", lambda: None)  # of this whole process
    worker = object.__new__(Worker)
    worker.vllm_config = engine_config(tmp_path, monkeypatch)
    return worker


def load(worker: Any, model_class: type, **attributes: Any) -> list[bool]:
    """Run load_model with a runner that "loads" a bare instance of vLLM's class; returns what the runner was asked."""
    model, asked = model_class.__new__(model_class), []
    model.__dict__.update(attributes)
    worker.model_runner = SimpleNamespace(
        load_model=lambda load_dummy_weights: asked.append(load_dummy_weights), get_model=lambda: model
    )
    worker.load_model()
    return asked


def test_a_model_with_eplb_is_loaded(worker: Any) -> None:
    """As vLLM loads it."""
    assert load(worker, Qwen3MoeForCausalLM, num_moe_layers=2) == [False]


def test_a_language_model_with_eplb_inside_is_loaded(worker: Any) -> None:
    """Of a multimodal model the language model counts."""
    inside = Qwen3MoeForCausalLM.__new__(Qwen3MoeForCausalLM)
    inside.__dict__["num_moe_layers"] = 2
    assert load(worker, AriaForConditionalGeneration, get_language_model=lambda: inside) == [False]


@pytest.mark.parametrize("model_class", [OlmoeForCausalLM, Qwen2MoeForCausalLM, GptOssForCausalLM])
def test_a_model_without_eplb_ends_the_start(worker: Any, model_class: type) -> None:
    """One whose layers are not vLLM's: found, expected, fix, by the class's name; nothing would be counted."""
    with pytest.raises(PluginError) as caught:
        load(worker, model_class)
    assert str(caught.value) == (
        f"model: found {model_class.__name__}, for which vLLM has no EPLB, expected a model whose MoE layers are "
        "vLLM's; fix: serve it without --enable-eplb and the plugin's settings"
    )


def test_a_multimodal_model_without_eplb_ends_the_start(worker: Any) -> None:
    """Only its loaded language model tells."""
    inside = OlmoeForCausalLM.__new__(OlmoeForCausalLM)
    with pytest.raises(PluginError, match="model: found AriaForConditionalGeneration, for which vLLM has no EPLB"):
        load(worker, AriaForConditionalGeneration, get_language_model=lambda: inside)


def test_what_moves_arrives_before_memory_goes(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleep, level 1: the migration under way ends first, then vLLM unmaps memory."""
    told: list[str] = []
    monkeypatch.setattr(state, "_finish", [lambda: told.append("finished")])
    monkeypatch.setattr(gpu_worker.torch.accelerator, "synchronize", lambda: told.append("vLLM's"))
    monkeypatch.setattr(gpu_worker.torch.accelerator, "get_memory_info", lambda: told.append("memory") or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # there is no device from here on
        worker.sleep()
    assert told == ["finished", "vLLM's", "memory"]


def test_weights_are_not_loaded_again(worker: Any) -> None:
    """vLLM would write every expert where it lay at the start, whatever lies there now."""
    worker.model_runner = None
    with pytest.raises(PluginError, match="new weights: found reload_weights, expected none: vLLM loads experts where"):
        worker.reload_weights()
