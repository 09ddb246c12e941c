"""What a model's config.json says of its experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.model_config import ModelShape, read_model_config


@pytest.mark.parametrize(
    ("document", "shape"),
    [
        ({"n_routed_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 61}, ModelShape(256, 8, 61)),
        ({"num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48}, ModelShape(128, 8, 48)),
        ({"num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 32}, ModelShape(8, 2, 32)),
        ({"text_config": {"num_local_experts": 16, "num_experts_per_tok": 1}}, ModelShape(16, 1, None)),
        ({"moe_num_experts": [64, 64], "moe_k": 6}, ModelShape(64, 6, None)),
    ],
)
def test_names_of_several_families(tmp_path: Path, document: object, shape: ModelShape) -> None:
    """DeepSeek, Qwen, Mixtral, Llama 4 and Ernie name their experts differently."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    assert read_model_config(path) == shape


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"num_experts": 0}', '{"moe_num_experts": [64, 32]}'])
def test_what_names_no_experts_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        read_model_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
