"""What is read of a model's routers, and which are refused. The routers are SGLang's, without the rest of a server."""

from __future__ import annotations

import importlib
import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.hash_topk import HashTopK
from sglang.srt.layers.moe.topk import TopK, TopKConfig, TopKOutputFormat

from eplb_plugin.engines.sglang.moe_layers import inspect_layers, refuse_skipping
from eplb_plugin.errors import PluginError
from shipped_configs import ARCHITECTURES, CONFIGS, commands

SLOTS = 36
MODULES = {
    "DeepseekV3ForCausalLM": "deepseek_v2", "Qwen3MoeForCausalLM": "qwen3_moe", "Glm4MoeForCausalLM": "glm4_moe"
}  # fmt: skip


def router(layer: int, kind: type = TopK, draft: bool = False, **config: Any) -> torch.nn.Module:
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.layer_id, made.is_draft = layer, draft
    if kind is TopK:
        made.topk_config = TopKConfig(**{"top_k": 4, **config})
    else:
        made.topk, made.shared_experts = 4, SimpleNamespace(num_shared_topk_slots=0)
    return made


def experts(layer: int, slots: int) -> torch.nn.Module:
    made = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(made)
    made.layer_id, made._num_global_routed = layer, slots
    return made


def model(*routers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(*routers))


def test_layers_as_they_are() -> None:
    """Decoder-layer numbers in order, of both kinds of router; shared experts and drafts are no routed ones."""
    shared = SimpleNamespace(num_shared_topk_slots=1)
    routers = [
        router(7), router(3, HashTopK), router(5, top_k=5, shared_experts=shared), router(9, draft=True, top_k=2),
        router(6, output_format=TopKOutputFormat.STANDARD),
    ]  # fmt: skip
    found = inspect_layers(model(*routers, experts(3, SLOTS)), SLOTS)
    assert (found.layer_ids, found.top_k) == ([3, 5, 6, 7], 4)


@pytest.mark.parametrize("unseen", [TopKOutputFormat.BYPASSED, TopKOutputFormat.TRITON_KERNEL])
def test_routing_inside_the_kernel_refused(unseen: TopKOutputFormat) -> None:
    """By the layer's number and the kind."""
    with pytest.raises(PluginError, match=f"layer 4: found {unseen.name}, routing inside the expert kernel, expected"):
        inspect_layers(model(router(3), router(4, output_format=unseen)), SLOTS)


def test_layers_that_differ_or_are_missing_refused() -> None:
    """One buffer serves all layers; a model without routers of SGLang's cannot be seen."""
    with pytest.raises(PluginError, match=r"MoE layers: found top-k \[2, 4\], expected one top-k for all layers"):
        inspect_layers(model(router(3), router(4, top_k=2)), SLOTS)
    with pytest.raises(PluginError, match="MoE layers: found no router of SGLang's"):
        inspect_layers(model(router(3, draft=True)), SLOTS)


def test_a_model_that_ignores_redundant_experts_refused() -> None:
    """SGLang's maps would name slots that its layers do not have."""
    with pytest.raises(PluginError, match="layer 3: found 32 slots, expected 36; fix: --ep-num-redundant-experts 0"):
        inspect_layers(model(router(3), experts(3, 32)), SLOTS)


def block(module: str, kind: str, draft: bool = False) -> torch.nn.Module:
    """A layer of SGLang's own code, with its router alone."""
    found = getattr(importlib.import_module(f"sglang.srt.models.{module}"), kind)
    made = found.__new__(found)
    torch.nn.Module.__init__(made)
    made.topk = router(3, draft=draft)
    return made


def test_layers_that_an_idle_rank_may_leave_out_refused() -> None:
    """Where ranks exchange counts: gpt-oss's do not ask their router for an empty output, Qwen3-MoE's do; drafts are
    not mapped."""
    refuse_skipping(model(block("qwen3_moe", "Qwen3MoeSparseMoeBlock"), block("gpt_oss", "GptOssSparseMoeBlock", True)))
    line = r"exact: found GptOssSparseMoeBlock \(1.1\), expected layers that ask for empty_topk_output on idle ranks"
    with pytest.raises(PluginError, match=line):
        refuse_skipping(model(block("qwen3_moe", "Qwen3MoeSparseMoeBlock"), block("gpt_oss", "GptOssSparseMoeBlock")))


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_a_command_for_sglang_is_given_where_its_class_takes_redundant_experts(name: str) -> None:
    """Or the file says that it does not: all shipped files ask for some."""
    (path,) = (path for path in CONFIGS.glob("*.yaml") if name in [one.model for one in commands(path)])
    architecture = ARCHITECTURES[name]
    module = importlib.import_module(f"sglang.srt.models.{MODULES[architecture]}")
    takes_them = re.search(r"num_experts=[^,\n]*redundant", inspect.getsource(module)) is not None
    assert takes_them == ("sglang" in [one.engine for one in commands(path)])
    assert takes_them == (f"{architecture} ignores redundant experts" not in path.read_text())
