"""Every kind of file is told by its content, whatever its name, and refused with where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from eplb_plugin import Placement, PluginError, RoutingStatistics
from eplb_plugin.file_kinds import KINDS, kind_of
from eplb_plugin.workloads.trace import Shape, read_trace

MAP = torch.zeros(2, 3, dtype=torch.int64)
PLACED = Placement(np.array([[0, 1, 2]]))


def text(content: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def exported(name: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        named = path.with_suffix(".yaml" if name == "tensorrt-llm" else ".json")
        PLACED.export(name, named, num_ranks=3)
        named.rename(path)

    return write


def saved(path: Path, save: Callable[[Path], None], ending: str) -> None:
    """numpy and torch put endings to names."""
    save(path.with_suffix(ending))
    path.with_suffix(ending).rename(path)


FILES: dict[str, Callable[[Path], object]] = {
    "statistics": RoutingStatistics(np.ones((2, 3)) / 7).save,
    "placement": PLACED.save,
    "tensors": lambda path: path.write_bytes(save({"model.layers.0.mlp.gate.weight": np.ones(3)})),
    "npz": lambda path: saved(path, lambda named: np.savez(named, topk_ids=np.zeros((1, 2, 3), int)), ".npz"),
    "torch-map": lambda path: torch.save({"physical_to_logical_map": MAP}, path),
    "torch-recording": lambda path: torch.save({"records": [], "last_physical_to_logical_map": MAP}, path),
    "torch": lambda path: torch.save({"weights": MAP}, path),
    "npy": lambda path: saved(path, lambda named: np.save(named, np.zeros((2, 3))), ".npy"),
    "benchmark": text({"backend": "vllm", "request_throughput": 3.5}),
    "model-config": text({"architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 256}),
    "vllm-ascend": exported("vllm-ascend"),
    "sglang": exported("sglang"),
    "counts": text({"logical_count": [[1, 2]]}),
    "loads": text({"layers": [{"layer": 0, "heat": [1, 2]}]}),
    "answers": text({"text": "say \"heat\": 3", "meta_info": {"routed_experts": "AAAA"}}),
    "tensorrt-llm": exported("tensorrt-llm"),
    "settings": text("# mine\n\npolicy: affinity\n"),
    "table": text("1.5,2\n3,4\n"),
}  # fmt: skip
TRACES = {kind.name for kind in KINDS if kind.belongs == "pass it as a trace"}


def test_every_kind_has_a_file_here() -> None:
    assert list(FILES) == [kind.name for kind in KINDS]


@pytest.mark.parametrize("name", FILES)
def test_kinds_are_told_by_content(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / "file")
    kind = kind_of(tmp_path / "file")
    assert kind is not None
    assert kind.name == name


@pytest.mark.parametrize("name", sorted(set(FILES) - TRACES))
def test_what_is_no_trace_is_refused_by_its_kind(name: str, tmp_path: Path) -> None:
    """And never by the words of a parser that took it for something else."""
    path = tmp_path / "file"
    FILES[name](path)
    with pytest.raises(PluginError) as caught:
        read_trace(path, Shape())
    kind = kind_of(path)
    assert kind is not None
    assert str(caught.value) == f"{path}: found {kind.what}, expected a trace (docs/tools.md); fix: {kind.belongs}"


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\0" * 64, b'{"a": 1}', b"[]", b"a: 1\n", b",\n,", b"1\n2\n"]
)
def test_anything_else_is_of_no_kind(content: bytes, tmp_path: Path) -> None:
    """Nor is what is not there; both are refused as such."""
    (tmp_path / "file").write_bytes(content)
    for path in (tmp_path / "file", tmp_path / "none", tmp_path, tmp_path / "a\0b"):
        assert kind_of(path) is None
    with pytest.raises(PluginError, match=r"it is of no kind that is known.*fix: pass what `eplb-plugin record` has"):
        read_trace(tmp_path / "file", Shape())
