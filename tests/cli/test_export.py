"""`eplb-plugin export`: a saved placement becomes the file that another program starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import Placement

Answer = tuple[int, str, str]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Placement(np.array([[3, 2, 1, 0], [0, 1, 3, 2]]), np.array([1, 2])).save(tmp_path / "placement.safetensors")
    return tmp_path / "placement.safetensors"


def test_every_layer_is_written(call: Callable[..., Answer], saved: Path) -> None:
    """The placement's rows at their decoder layers, SGLang's own start in the dense ones."""
    out = saved.with_name("start.json")
    code, text, err = call("export", saved, out, "--num-layers", 4)
    assert (code, err) == (0, "")
    assert f"--init-expert-location {out}" in text
    rows = [[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 3, 2], [0, 1, 2, 3]]
    assert json.loads(out.read_text()) == {"physical_to_logical_map": rows}


def test_each_reader_is_told_how_to_take_it(call: Callable[..., Answer], saved: Path) -> None:
    """vllm-ascend's devices are the ranks that the placement was planned for."""
    Placement.load(saved).save(saved, {"num_ranks": 2})
    ascend, tensorrt = saved.with_name("map.json"), saved.with_name("balancer.yaml")
    code, text, err = call("export", saved, ascend, "--for", "vllm-ascend")
    assert (code, f'"eplb_config": {{"expert_map_path": "{ascend}"}}' in text, err) == (0, True, "")
    assert json.loads(ascend.read_text())["layer_list"][0]["device_count"] == 2
    code, text, err = call("export", saved, tensorrt, "--for", "tensorrt-llm")
    assert (code, f"moe_config: {{load_balancer: {tensorrt}}}" in text, err) == (0, True, "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("placement.safetensors", "start.pt"), "path: found"),
        (("placement.safetensors", "start.json", "--num-layers", 2), "num_layers: found 2, expected at least 3"),
        (("placement.safetensors", "start.json", "--for", "vllm"), "format: found vllm"),
        (("placement.safetensors", "start.json", "--for", "vllm-ascend"), "num_ranks: found None"),
        (("placement.safetensors", "start.json", "--for", "tensorrt-llm"), "path: found"),
        (("start.json", "other.json"), "start.json: cannot be read as a placement file"),
        (("placement.safetensors", "placement.safetensors/start.json"), "start.json: cannot be written"),
    ],
)
def test_refused_in_one_line(call: Callable[..., Answer], saved: Path, words: tuple[object, ...], line: str) -> None:
    paths = [saved.parent / str(word) for word in words[:2]]
    code, out, err = call("export", *paths, *words[2:])
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
    assert list(saved.parent.iterdir()) == [saved]
