"""What a file was made for: its name and header, and what is refused of another model or EP group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eplb_plugin import PluginError, Topology
from eplb_plugin.deployment import Deployment, base_name

OURS = Deployment("/models/Some-MoE", "vllm", "decode", Topology(2, 1, 3), 4, (1, 3))
PLACED = np.array([[0, 1, 2, 3, 0, 1]] * 2)


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("org/Some-MoE_v1.5/", "Some-MoE_v1.5"),
        ("a b:c/d*e f", "d-e-f"),
        ("..hidden..", "hidden"),
        ("模型", "model"),
        ("", "model"),
    ],
)
def test_files_are_called_by_model_and_phase(model: str, stem: str) -> None:
    """The last part of the path, with nothing in it that a file system or a shell would take otherwise."""
    assert replace(OURS, model=model).stem == f"{stem}.decode"


def test_headers_say_what_is_known() -> None:
    """Layers only once the model is loaded; a placement's also says for which nodes and ranks."""
    header = {"model": "/models/Some-MoE", "engine": "vllm", "phase": "decode", "num_experts": 4}
    assert OURS.header() == {**header, "num_layers": 2}
    assert replace(OURS, layer_ids=None).header() == header
    assert OURS.placement_header() == {**header, "num_layers": 2, "num_nodes": 2, "num_ranks": 2}


def test_own_files_fit() -> None:
    """Also of the model in another folder, without a header, and before the layers are known."""
    for header in (OURS.placement_header(), {}, {"model": "elsewhere/Some-MoE/"}):
        OURS.refuse_window("f", header, 4, np.array([1, 3]))
        OURS.refuse_placement("f", header, PLACED, np.array([1, 3]))
        replace(OURS, layer_ids=None).refuse_window("f", header, 4, np.array([7]))


@pytest.mark.parametrize(
    ("header", "experts", "layers", "line"),
    [
        ({"model": "Other"}, 4, [1, 3], "model: found Other, expected /models/Some-MoE"),
        ({}, 5, [1, 3], "experts: found 5, expected 4"),
        ({}, 4, [1, 2], r"layers: found \[1, 2\], expected \[1, 3\]"),
        ({}, 4, [1], r"layers: found \[1\], expected \[1, 3\]"),
    ],
)
def test_windows_of_another_model_are_refused(header: Any, experts: int, layers: list[int], line: str) -> None:
    """In one line with the file's name."""
    with pytest.raises(PluginError, match=f"^f: {line}; fix: pass a file of this model"):
        OURS.refuse_window("f", header, experts, np.array(layers))


@pytest.mark.parametrize(
    ("header", "placed", "line"),
    [
        ({"model": "Other"}, PLACED, "model: found Other"),
        ({}, PLACED[:, :4], "slots: found 4, expected 6"),
        ({}, PLACED % 3, "experts: found 3, expected 4"),
        ({"num_ranks": 3}, PLACED, "num_ranks: found 3, expected 2"),
        ({"num_nodes": 1}, PLACED, "num_nodes: found 1, expected 2"),
    ],
)
def test_placements_of_another_layout_are_refused(header: Any, placed: Any, line: str) -> None:
    """As windows are, and where slots, ranks or nodes are others."""
    with pytest.raises(PluginError, match=f"^f: {line}"):
        OURS.refuse_placement("f", header, placed, np.array([1, 3]))


def test_base_names() -> None:
    """What tells two models apart."""
    assert [base_name(name) for name in ("a/b/c", "c/", "c")] == ["c", "c", "c"]
