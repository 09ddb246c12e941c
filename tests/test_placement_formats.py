"""Placements in other programs' files: written as documented, and the same when read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eplb_plugin import Placement, PluginError
from eplb_plugin.file_kinds import kind_of
from eplb_plugin.placement_formats import FORMATS, ExpertMap, read_map

RANKS = 3
PLACED = Placement(np.array([[3, 2, 1, 0, 1, 3], [0, 1, 3, 2, 2, 0]]), np.array([1, 3]))


def exported(placed: Placement, name: str, folder: Path, ranks: int = RANKS) -> Path:
    path = folder / f"start{FORMATS[name].endings[0]}"
    placed.export(name, path, num_ranks=ranks)
    return path


def read(path: Path) -> ExpertMap:
    kind = kind_of(path)
    assert kind is not None
    return read_map(path, kind)


def test_vllm_ascends_map_is_as_documented(tmp_path: Path) -> None:
    """Every MoE layer, numbered from 0, with every device's experts."""
    found = json.loads(exported(PLACED, "vllm-ascend", tmp_path).read_text())
    assert (found["moe_layer_count"], [layer["layer_id"] for layer in found["layer_list"]]) == (2, [0, 1])
    assert found["layer_list"][1]["device_count"] == RANKS
    assert found["layer_list"][1]["device_list"][2] == {"device_id": 2, "device_expert": [2, 0]}


def test_tensorrt_llms_settings_are_as_documented(tmp_path: Path) -> None:
    """By decoder layer, with the number of slots, and nothing moved afterwards."""
    text = exported(PLACED, "tensorrt-llm", tmp_path).read_text()
    assert yaml.safe_load(text) == {
        "num_slots": 6,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": {1: [3, 2, 1, 0, 1, 3], 3: [0, 1, 3, 2, 2, 0]},
    }
    assert "  1: [3, 2, 1, 0, 1, 3]\n" in text  # a line a layer


@pytest.mark.parametrize("name", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(st.data())
def test_the_same_when_read_again(name: str, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the placement: its slots, and its layers as far as the file says them."""
    ranks, experts = data.draw(st.integers(1, 4)), data.draw(st.integers(4, 8))
    layers, each = data.draw(st.integers(1, 4)), -(-experts // ranks)
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = np.stack([draw.permutation(experts) for _ in range(layers)])[:, np.arange(ranks * each) % experts]
    ids = np.sort(draw.choice(9, layers, replace=False))
    placed = Placement(rows, ids)
    found = read(exported(placed, name, tmp_path, ranks))
    if name == "sglang":
        assert found.layer_ids is not None
        np.testing.assert_array_equal(found.layer_ids, np.arange(ids[-1] + 1))
        np.testing.assert_array_equal(found.phy2log[ids], placed.phy2log)
    else:
        np.testing.assert_array_equal(found.phy2log, placed.phy2log)
        assert (found.layer_ids is None) == (name == "vllm-ascend")
        assert found.layer_ids is None or found.layer_ids.tolist() == ids.tolist()
        assert found.num_ranks == (ranks if name == "vllm-ascend" else None)


def test_a_whole_servers_settings_are_read(tmp_path: Path) -> None:
    """TensorRT-LLM takes them in the settings of the server, too, and the layers in any order."""
    inner = yaml.safe_load(exported(PLACED, "tensorrt-llm", tmp_path).read_text())
    inner["initial_global_assignments"] = dict(reversed(inner["initial_global_assignments"].items()))
    path = tmp_path / "server.yaml"
    path.write_text(
        yaml.safe_dump({"enable_attention_dp": True, "moe_config": {"load_balancer": inner}}, sort_keys=False)
    )
    np.testing.assert_array_equal(read(path).phy2log, PLACED.phy2log)


@pytest.mark.parametrize(
    ("ranks", "rows", "line"),
    [
        (None, [[0, 1, 2, 3]], "num_ranks: found None, expected a divisor of 4 slots"),
        (3, [[0, 1, 2, 3]], "num_ranks: found 3, expected a divisor of 4 slots"),
        (2, [[0, 0, 1, 2]], "an expert twice on rank 0 of MoE layer 0, expected each once a rank"),
    ],
)
def test_what_vllm_ascends_file_cannot_say(tmp_path: Path, ranks: int | None, rows: list[Any], line: str) -> None:
    with pytest.raises(PluginError, match=line):
        Placement(np.array(rows)).export("vllm-ascend", tmp_path / "start.json", num_ranks=ranks)
    assert list(tmp_path.iterdir()) == []


def _ascend(*devices: list[int], count: int = 1) -> str:
    listed = [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(devices)]
    return json.dumps({"moe_layer_count": count, "layer_list": [{"layer_id": 0, "device_list": listed}]})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("start.json", '{"physical_to_logical_map": [[0, 1], [0]]}', "not the same number of experts"),
        ("start.json", '{"physical_to_logical_map": [[0, 1.0]]}', "not the same number of experts"),
        ("start.json", '{"physical_to_logical_map": [[0, true]]}', "not the same number of experts"),
        ("start.json", '{"physical_to_logical_map": []}', "IndexError"),
        ("start.json", '{"physical_to_logical_map": [[0, 1]', "JSONDecodeError"),
        ("start.json", _ascend([0, 1], [2]), "devices hold different numbers of experts"),
        ("start.json", _ascend([0, 1], [2, 4]), "not the same number of experts, 0 … slots - 1"),
        ("start.json", _ascend([0, 1], [2, 3], count=2), "moe_layer_count 2 of 1 layers"),
        ("start.yaml", "initial_global_assignments: {3: [0, 1]}\nnum_slots: 3\n", "num_slots 3 for rows of 2"),
        ("start.yaml", "initial_global_assignments: {a: [0, 1]}\nnum_slots: 2\n", "ValueError"),
        ("start.yaml", "initial_global_assignments: [\n", "ParserError"),
        ("start.yaml", "a: &a [1]\nb: &b [*a, *a]\ninitial_global_assignments: {0: [*b, *b]}\n", "not the same number"),
    ],
)
def test_damaged_maps_are_one_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as ")
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
