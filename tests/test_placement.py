from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from eplb_plugin import Placement, PluginError
from eplb_plugin.placement import linear_placement
from strategies import QUICK, Case, cases


@QUICK
@given(cases())
def test_maps_invert_each_other(case: Case):
    placement = case.previous
    for layer, slots in enumerate(placement.phy2log.tolist()):
        for expert in range(placement.num_experts):
            copies = [slot for slot, held in enumerate(slots) if held == expert]
            assert placement.replica_count[layer, expert] == len(copies) > 0
            row = placement.log2phy[layer, expert].tolist()
            assert row == copies + [-1] * (len(row) - len(copies))
            assert [placement.replica_index[layer, slot] for slot in copies] == list(range(len(copies)))
    assert placement.log2phy.shape[2] == placement.replica_count.max()


def test_moves_are_slots_with_another_expert():
    old, new = Placement(np.array([[0, 1, 2, 0]])), Placement(np.array([[0, 2, 1, 0]]))
    assert new.moves_from(old).tolist() == [[False, True, True, False]]
    for other in (Placement(np.array([[0, 1]])), Placement(np.array([[0, 1, 2, 0]]), [4])):
        with pytest.raises(PluginError, match="previous"):
            new.moves_from(other)


def test_linear_placement_repeats_from_expert_0():
    assert linear_placement(1, 3, 5).phy2log.tolist() == [[0, 1, 2, 0, 1]]
    with pytest.raises(PluginError, match="slots"):
        linear_placement(1, 3, 2)


def test_save_and_load(tmp_path):
    placement = Placement(np.array([[0, 1, 1], [1, 0, 0]]), [3, 9])
    placement.save(tmp_path / "p", {"model": "tiny"})
    again = Placement.load(tmp_path / "p")
    assert np.array_equal(again.phy2log, placement.phy2log)
    assert again.layer_ids.tolist() == [3, 9]
    with pytest.raises(PluginError):
        Placement.load(tmp_path / "missing")


@pytest.mark.parametrize(
    "bad", [np.zeros(3, int), np.zeros((0, 2), int), np.zeros((1, 2)), np.array([[-1, 0]]), np.array([[0, 2]])]
)
def test_bad_input_is_one_line(bad):
    with pytest.raises(PluginError, match="fix:") as caught:
        Placement(bad)
    assert "\n" not in str(caught.value)


def test_experts_must_be_in_every_layer():
    with pytest.raises(PluginError, match="layer 1"):
        Placement(np.array([[0, 1, 2], [0, 1, 1]]))


def test_export_for_sglang(tmp_path: Path) -> None:
    """SGLang counts dense layers too: they get its own start, the others our rows at their decoder-layer numbers."""
    placed = Placement(np.array([[3, 2, 1, 0, 3], [0, 1, 2, 3, 0]]), np.array([1, 3]))
    placed.export("sglang", tmp_path / "start.json")
    (rows,) = json.loads((tmp_path / "start.json").read_text()).values()
    assert rows == [[0, 1, 2, 3, 0], [3, 2, 1, 0, 3], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0]]
    placed.export("sglang", str(tmp_path / "start.json"), num_layers=6)
    found = json.loads((tmp_path / "start.json").read_text())
    assert list(found) == ["physical_to_logical_map"]  # SGLang passes every key on as an argument
    assert len(found["physical_to_logical_map"]) == 6


@pytest.mark.parametrize(
    ("engine", "name", "layers", "line"),
    [
        ("vllm", "start.json", None, "format: found vllm, expected one of sglang, vllm-ascend, tensorrt-llm"),
        ("sglang", "start.pt", None, "expected a name that ends in .json"),
        ("sglang", "start.json", 3, "num_layers: found 3, expected at least 4"),
    ],
)
def test_export_refused(tmp_path: Path, engine: str, name: str, layers: int | None, line: str) -> None:
    """Nothing is written."""
    placed = Placement(np.array([[0, 1], [1, 0]]), np.array([1, 3]))
    with pytest.raises(PluginError, match=line):
        placed.export(engine, tmp_path / name, layers)
    assert list(tmp_path.iterdir()) == []


def test_a_file_made_for_another_server_is_refused(tmp_path: Path) -> None:
    """Header entries that contradict what is expected: one line. Entries that a file lacks are not held against it."""
    path = tmp_path / "p.safetensors"
    linear_placement(2, 4, 6).save(path, {"model": "a", "num_ranks": 2})
    assert Placement.load(path, {"model": "a", "num_ranks": 2, "phase": "decode"}).num_slots == 6
    with pytest.raises(PluginError, match=r"p\.safetensors: num_ranks: found 2, expected 4"):
        Placement.load(path, {"model": "a", "num_ranks": 4})
    with pytest.raises(PluginError, match="model: found a, expected b"):
        Placement.load(path, {"model": "b"})
