"""Answers with routed experts: read as servers write them, refused when they are something else."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_plugin.errors import PluginError
from eplb_plugin.workloads.trace import Shape, read_trace, read_window

ROWS = np.array([[[0, 0], [1, 2], [3, 0]], [[0, 0], [2, 3], [0, 1]]], np.uint8)  # [tokens, layers, k], layer 0 dense


def encoded(array: np.ndarray) -> str:
    data = io.BytesIO()
    np.save(data, array)
    return base64.b64encode(data.getvalue()).decode()


def answer(*arrays: np.ndarray | None) -> str:
    choices = [{"index": 0, "text": "", "routed_experts": None if one is None else encoded(one)} for one in arrays]
    return json.dumps({"id": "cmpl-1", "choices": choices})


def test_answers_are_one_window(tmp_path: Path) -> None:
    """Tokens of all answers, without the dense layer; an aborted request has none."""
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join([answer(ROWS, None), "", answer(ROWS[:1])]) + "\n")
    window = read_window(path, num_experts=8)
    assert window.layer_ids.tolist() == [1, 2]
    assert window.num_experts == 8
    assert window.num_tokens.tolist() == [3, 3]
    assert window.load[0].tolist() == [0, 2, 3, 1, 0, 0, 0, 0]
    assert window.sample is not None
    np.testing.assert_array_equal(window.sample[1], [[3, 0], [0, 1], [3, 0]])


def raw(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


DYNAMO = {"data": raw(ROWS), "shape": list(ROWS.shape), "start": 0}
SGLANG = raw(ROWS.astype(np.int32))
SERVERS = [
    {"choices": [{"index": 0}], "nvext": {"routed_experts": {**DYNAMO, "dtype": "uint8"}}},
    {"choices": [], "nvext": {"engine_data": {"routed_experts": DYNAMO}}},
    {"choices": [{}], "nvext": {"routed_experts": {**DYNAMO, "data": raw(ROWS.astype(np.uint16))}}},
    {"text": "", "meta_info": {"prompt_tokens": 2, "routed_experts": SGLANG}},
    {"choices": [{}], "sglext": {"routed_experts": SGLANG}},
    {"choices": [{}], "nvext": {"routed_experts": SGLANG}},
    {"meta_info": {"routed_experts": SGLANG, "routed_experts_shape": list(ROWS.shape)}},
    [{"meta_info": {"routed_experts": SGLANG}}, {"meta_info": {}}],
]


@pytest.mark.parametrize("answer", SERVERS)
@pytest.mark.parametrize("indent", [None, 1])
def test_answers_of_other_servers(tmp_path: Path, answer: Any, indent: int | None) -> None:
    """dynamo's say their shape, SGLang's need the model's; on one line or many, whatever the file is called."""
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer, indent=indent))
    window = read_trace(path, Shape(num_experts=8, top_k=2, num_layers=3)).window
    assert window.layer_ids.tolist() == [1, 2]
    np.testing.assert_array_equal(window.sample, ROWS.transpose(1, 0, 2)[1:])
    if "shape" not in json.dumps(answer):
        line = r"line 1, routed_experts without a shape, as SGLang has them.*fix: pass --model-config"
        with pytest.raises(PluginError, match=line):
            read_window(path, num_experts=8)


def test_a_layer_is_dense_by_its_rows(tmp_path: Path) -> None:
    """A dense layer stays out though one of its rows is cut off; a top-1 layer that chose expert 0 only is an MoE's."""
    path, rows = tmp_path / "answers.jsonl", ROWS.astype(np.int16)
    rows[1, 0, 1] = -1
    path.write_text(answer(np.concatenate([rows, ROWS.astype(np.int16)])))
    assert read_window(path, num_experts=8).layer_ids.tolist() == [1, 2]
    path.write_text(answer(np.zeros((5, 2, 1), np.uint8)))
    assert read_window(path, num_experts=8).load[:, 0].tolist() == [5, 5]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{answer(ROWS)}\n\n{answer(ROWS)[:-5]}\n")
    with pytest.raises(PluginError, match="line 3, JSONDecodeError"):
        read_window(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no routed_experts"),
        (answer(None), "no routed_experts"),
        ("{", "JSONDecodeError"),
        ('{"choices": [{"routed_experts": "???"}]}', "ValueError"),
        ('{"choices": [{"routed_experts": "AAAA"}]}', "line 1, routed_experts without a shape"),
        ('{"choices": 3}', "TypeError"),
        ('{"nvext": {"routed_experts": {"data": "AAAA", "shape": [1, 1, 2]}}}', "3 bytes for shape [1, 1, 2]"),
        ('{"nvext": {"routed_experts": {"data": "AAAA", "shape": [1, -1, -3]}}}', "shape [1, -1, -3]"),
        ('{"nvext": {"routed_experts": {"data": "AAAA", "shape": [1, 1, 3], "dtype": "O"}}}', "ValueError"),
        ('{"nvext": {"routed_experts": {"data": "AAAA"}}}', "KeyError"),
        (answer(ROWS, ROWS[:, :2]), "arrays of shapes"),
        (answer(ROWS[0]), "arrays of shapes"),
        (answer(np.zeros((2, 2, 2), np.uint8)), "no token"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        read_window(path)
    assert str(caught.value).startswith(str(path))
    assert found in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
