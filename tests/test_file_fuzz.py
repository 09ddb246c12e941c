"""Whatever is in a file: a valid object, or one line that names the file. Never a traceback."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from eplb_plugin import Placement, PluginError, RoutingStatistics, Topology
from eplb_plugin.cli.placements import read_placement
from eplb_plugin.files import FORMAT_VERSION
from eplb_plugin.observe.bench_results import read_runs
from eplb_plugin.placement import linear_placement
from eplb_plugin.placement_formats import FORMATS, ExpertMap, encode
from eplb_plugin.settings.config import load_config
from eplb_plugin.workloads.trace import read_window
from generators import sglang_result, vllm_result
from strategies import QUICK

ROWS = np.array([[[0, 1], [2, 3], [1, -1]], [[3, 0], [1, 2], [0, 2]]])
LOADS = {"k": 2, "layers": [{"layer": 0, "heat": [5, 1, 0, 2]}, {"layer": 2, "heat": [1, 1, 3, 3]}]}
SETTINGS = "policy: affinity\ntopology: {nodes: 2}\nbudget:\n  max_moved_slots: 4\nprice: null\n"
CALM = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
Reader = Callable[[Path], Any]


def make_trace(path: Path) -> None:
    np.savez(path, topk_ids=ROWS, num_experts=4)


def answer() -> dict[str, Any]:
    """Of a vLLM server that returns routed experts, [tokens, layers, k]."""
    data = io.BytesIO()
    np.save(data, ROWS.transpose(1, 0, 2).clip(0).astype(np.uint8))
    return {"choices": [{"index": 0, "routed_experts": base64.b64encode(data.getvalue()).decode()}]}


def read_other_map(path: Path) -> Any:
    """As `plan --previous` reads it: any kind of placement, told by its content."""
    return read_placement(path, Topology(1, 2, 3))


IDS = {"data": base64.b64encode(bytes(range(12))).decode(), "shape": [2, 3, 2], "dtype": "uint8"}
DYNAMO_ANSWER = {"choices": [{"index": 0}], "nvext": {"routed_experts": IDS}}
SGLANG_ANSWER = {"text": "a", "meta_info": {"routed_experts": IDS["data"], "routed_experts_shape": [2, 3, 2]}}
PLACED = Placement(np.array([[3, 2, 1, 0, 1, 3], [0, 1, 3, 2, 3, 0]]), np.array([0, 1]))
MAPS = {
    name: json.loads(data) if name != "tensorrt-llm" else yaml.safe_load(data)
    for name, format in FORMATS.items()
    for data in [encode(name, ExpertMap(PLACED.phy2log, PLACED.layer_ids, 2), f"map{format.endings[0]}")]
}
COUNTS = {"logical_count": [[[5, 1, 0, 2], [1, 1, 3, 3]]]}
TABLE = "layer,e0,e1,e2\n3,5,1,0\n7,1,1.5,3\n"


def saved_npy(path: Path) -> None:
    with open(path, "wb") as stream:
        np.save(stream, ROWS)


FILES: dict[str, tuple[Callable[[Path], object], Reader]] = {
    "window.safetensors": (lambda path: RoutingStatistics.from_topk(ROWS, 4).save(path), read_window),
    "trace.npz": (make_trace, read_window),
    "loads.json": (lambda path: path.write_text(json.dumps(LOADS)), read_window),
    "answers.jsonl": (lambda path: path.write_text(f"{json.dumps(answer())}\n" * 2), read_window),
    "ids.npy": (saved_npy, read_window),
    "loads.csv": (lambda path: path.write_text(TABLE), read_window),
    "counts.json": (lambda path: path.write_text(json.dumps(COUNTS)), read_window),
    "dynamo.jsonl": (lambda path: path.write_text(f"{json.dumps(DYNAMO_ANSWER)}\n" * 2), read_window),
    "map.json": (lambda path: path.write_text(json.dumps(MAPS["sglang"])), read_other_map),
    "ascend.json": (lambda path: path.write_text(json.dumps(MAPS["vllm-ascend"])), read_other_map),
    "balancer.yaml": (lambda path: path.write_text(yaml.safe_dump(MAPS["tensorrt-llm"])), read_other_map),
    "map.pt": (lambda path: torch.save({"physical_to_logical_map": torch.zeros(2, 3).int()}, path), read_other_map),
    "placement.safetensors": (lambda path: linear_placement(2, 4, 6).save(path), Placement.load),
    "vllm.json": (lambda path: path.write_text(json.dumps(vllm_result())), read_runs),
    "sglang.jsonl": (lambda path: path.write_text(f"{json.dumps(sglang_result())}\n" * 2), read_runs),
    "eplb.yaml": (lambda path: path.write_text(SETTINGS), load_config),
}
JSON_FILES: dict[str, tuple[Any, Reader]] = {
    "loads.json": (LOADS, read_window),
    "answers.jsonl": (answer(), read_window),
    "counts.json": (COUNTS, read_window),
    "dynamo.jsonl": (DYNAMO_ANSWER, read_window),
    "meta.jsonl": (SGLANG_ANSWER, read_window),
    "map.json": (MAPS["sglang"], read_other_map),
    "ascend.json": (MAPS["vllm-ascend"], read_other_map),
    "balancer.yaml": (MAPS["tensorrt-llm"], read_other_map),  # JSON is YAML
    "vllm.json": (vllm_result(), read_runs),
    "sglang.jsonl": (sglang_result(), read_runs),
}
ARRAYS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "statistics": (("load", "coactivation", "sample", "num_tokens", "layer_ids"), read_window),
    "placement": (("phy2log", "layer_ids"), Placement.load),
}


def valid_or_one_line(read: Reader, path: Path) -> None:
    try:
        read(path)
    except PluginError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert message.splitlines() == [message]
        assert "; fix: " in message


def damage(folder: Path, name: str, data: st.DataObject) -> None:
    """Cut, flipped, doubled, or with foreign bytes in it, anywhere but more often near the start."""
    make, read = FILES[name]
    make(folder / name)
    whole = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, len(whole)), st.integers(0, min(300, len(whole)))))
        match data.draw(st.sampled_from(["cut", "flip", "insert", "repeat"])):
            case "cut":
                del whole[at:]
            case "flip" if at < len(whole):
                whole[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                whole[at:at] = data.draw(st.binary(max_size=8))
            case "repeat":
                whole[at:at] = whole[at : at + 40]
    (folder / name).write_bytes(whole)
    valid_or_one_line(read, folder / name)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=6,
)


def replaced(value: Any, data: st.DataObject) -> Any:
    """`value` with one node, anywhere in it, replaced by any JSON value."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or data.draw(st.integers(0, 4)) == 0:
        return data.draw(json_values)
    key = data.draw(st.sampled_from(inside))
    copy = value.copy()
    copy[key] = replaced(value[key], data)
    return copy


def other_json(folder: Path, name: str, data: st.DataObject) -> None:
    document, read = JSON_FILES[name]
    (folder / name).write_text(json.dumps(replaced(document, data)))
    valid_or_one_line(read, folder / name)


def other_arrays(folder: Path, kind: str, data: st.DataObject) -> None:
    """A file of ours, well formed, whose arrays have any type, shape and values: another model, or nonsense."""
    names, read = ARRAYS[kind]
    arrays = {}
    for name in data.draw(st.lists(st.sampled_from(names), unique=True)):
        shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = data.draw(st.sampled_from(["i2", "i4", "i8", "u1", "u8", "f4", "f8", "?"]))
        values = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 255, -1, -2, 2**62, np.nan, np.inf]), min_size=1))
        with np.errstate(invalid="ignore", over="ignore"):
            arrays[name] = np.resize(np.array(values, np.float64), shape).astype(dtype)
    header = {"kind": kind, "version": FORMAT_VERSION}
    path = folder / "ours.safetensors"
    path.write_bytes(save(arrays, metadata={"eplb_plugin": json.dumps(header)}))
    valid_or_one_line(read, path)


CASES = [
    *((damage, name) for name in FILES), *((other_json, name) for name in JSON_FILES),
    *((other_arrays, kind) for kind in ARRAYS),
]  # fmt: skip
each_case = pytest.mark.parametrize(("spoil", "name"), CASES, ids=[f"{spoil.__name__}-{name}" for spoil, name in CASES])


@each_case
@settings(QUICK, suppress_health_check=CALM.suppress_health_check)
@given(data=st.data())
def test_spoilt_files(tmp_path: Path, spoil: Any, name: str, data: st.DataObject) -> None:
    spoil(tmp_path, name, data)


@pytest.mark.full
@each_case
@settings(CALM, deadline=None, max_examples=1000)
@given(data=st.data())
def test_spoilt_files_30_000(tmp_path: Path, spoil: Any, name: str, data: st.DataObject) -> None:
    """30 000 inputs, other ones every time."""
    spoil(tmp_path, name, data)


@pytest.mark.parametrize("name", FILES)
def test_files_of_one_kind_are_not_another(tmp_path: Path, name: str) -> None:
    """Every reader refuses every other kind of file in one line."""
    make, _ = FILES[name]
    make(tmp_path / name)
    for other, (_, read) in FILES.items():
        if read is not FILES[name][1] and (name, read) != ("placement.safetensors", read_other_map):
            foreign = tmp_path / f"foreign-{other}"
            foreign.write_bytes((tmp_path / name).read_bytes())
            with pytest.raises(PluginError) as caught:
                read(foreign)
            assert str(caught.value).startswith(str(foreign))
