"""vLLM's own configuration of an engine on a CPU, made as `LLM(...)` makes it, of a model that has no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import vllm.plugins
from eplb_cpu_engines.vllm import config_check
from transformers import Qwen3MoeConfig
from vllm.config import VllmConfig
from vllm.config import parallel as parallel_module
from vllm.engine.arg_utils import EngineArgs


def engine_args(folder: Path, patch: pytest.MonkeyPatch, experts: int = 60, **options: Any) -> EngineArgs:
    """Those of an EP engine with EPLB, unless options say otherwise; patch: until when a CPU may pass for a GPU."""
    patch.setattr(vllm.plugins, "plugins_loaded", True)  # other plugins stay out of this process
    patch.setattr(parallel_module, "current_platform", config_check._PassesAsGpu(parallel_module.current_platform))
    patch.setenv("HF_HUB_OFFLINE", "1")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = Qwen3MoeConfig(**sizes, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=32)
    made.architectures = ["Qwen3MoeForCausalLM"]
    made.save_pretrained(folder)
    usual = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "enable_eplb": True}
    usual |= {"enable_expert_parallel": True, "tensor_parallel_size": 2}
    return EngineArgs(model=str(folder), **(usual | options))


def engine_config(folder: Path, patch: pytest.MonkeyPatch, experts: int = 60, **options: Any) -> VllmConfig:
    return engine_args(folder, patch, experts, **options).create_engine_config()
