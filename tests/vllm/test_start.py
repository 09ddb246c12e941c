"""What a start ends with where the plugin could not do its work, in real servers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import OlmoeConfig

from eplb_plugin.bench.engine import Eplb, Layout
from eplb_plugin.bench.ports import free_port
from eplb_plugin.bench.server import Server

pytestmark = pytest.mark.server

SETTINGS = "topology: {nodes: 2}\nsample_rows: 1024\n"
LAYOUT = Layout(data_parallel=2)
EPLB = Eplb(16, window_size=4, step_interval=8)


def test_replicas_of_a_model_without_eplb_are_refused_by_name(
    serve: Callable[..., Server], models: Callable[[str], Path], tmp_path: Path
) -> None:
    """OLMoE, whose loader knows no redundant experts: the start ends before weights are looked for."""
    folder = tmp_path / "olmoe"
    unwanted = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
    shutil.copytree(models("qwen3_moe"), folder, ignore=unwanted)
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OlmoeConfig(**sizes, num_experts=32, vocab_size=2048, architectures=["OlmoeForCausalLM"])
    config.save_pretrained(folder)
    server = serve(folder, LAYOUT, EPLB, SETTINGS)
    assert server.wait_ended(240) != 0
    line = "num_redundant_experts: found 16, expected 0 for OlmoeForCausalLM, for which vLLM has no EPLB: its experts"
    assert line in server.text()
    assert "Loading safetensors" not in server.text()


def test_a_rank_without_the_plugin_ends_the_start(
    serve: Callable[..., Server], models: Callable[[str], Path], fault_path: str
) -> None:
    """Two `vllm serve`, one a rank, of which the second was told to leave the plugin out: the first names it."""
    model, one = models("qwen3_moe"), Layout()  # of which each is told to be one of two
    nodes = ["--enable-expert-parallel", "--data-parallel-size", "2", "--data-parallel-size-local", "1"]
    nodes += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port())]
    patience = {"PYTHONPATH": fault_path, "EPLB_FAULTS": "none", "EPLB_PRESENT_SECONDS": "20"}
    head = serve(model, one, EPLB, SETTINGS, arguments=[*nodes, "--api-server-count", "1"], **patience)
    other = [*nodes, "--headless", "--data-parallel-start-rank", "1"]
    serve(model, one, EPLB, arguments=other, EPLB_PLUGIN_DISABLE="1")
    assert head.wait_ended(240) != 0
    assert "plugin: found not active on ranks [1] of 2, expected active on every rank; fix: install" in head.text()
