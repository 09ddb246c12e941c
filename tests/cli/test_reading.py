"""How commands read traces: what the user says of their shape, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cli_files import CLUSTER, ROUTER, Answer, refused
from eplb_plugin import PluginError
from eplb_plugin.cli.placements import Existing
from eplb_plugin.cli.reading import read_traces, say_understood, shape_of
from eplb_plugin.placement import linear_placement
from eplb_plugin.workloads.trace import read_window


def existing(layers: str = "named") -> Existing:
    return Existing(Path("p"), linear_placement(2, 32, 40, [3, 4]), layers, "p: a map")


def test_what_is_known_of_a_shape(tmp_path: Path) -> None:
    """From the option, the model's configuration or a placement, which also numbers layers if it can."""
    assert shape_of().num_experts is None
    assert shape_of(16, "tokens-first") == shape_of(num_experts=16, layout="tokens-first")
    model = tmp_path / "config.json"
    model.write_text(json.dumps({"num_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 7}))
    shape = shape_of(32, model_config=model, existing=existing())
    assert (shape.num_experts, shape.top_k, shape.num_layers) == (32, 4, 7)
    assert shape.layer_ids is not None
    assert shape.layer_ids.tolist() == [3, 4]
    assert shape_of(existing=existing("order")).layer_ids is None
    with pytest.raises(PluginError, match=r"experts: found 16 by --num-experts, 32 by .*config\.json, 32 by the place"):
        shape_of(16, model_config=model, existing=existing())


def test_what_was_understood_is_said(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside JSON only what was guessed, and not on stdout, where the answer is."""
    readings = read_traces([files / "trace.npz", files / "window.safetensors"], shape_of())
    say_understood(readings, as_json=False, existing=existing())
    first = f"p: a map\n{readings[0].understood}\n{readings[1].understood}\n"
    assert capsys.readouterr() == (first, "")
    say_understood(readings, as_json=True, existing=existing())
    assert capsys.readouterr() == ("", "")
    np.savez(files / "bare.npz", topk_ids=ROUTER.window(50, 0))
    (guess,) = read_traces([files / "bare.npz"], shape_of())
    say_understood([guess], as_json=True)
    assert capsys.readouterr() == ("", f"{guess.understood}\n")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"ids": np.zeros((1, 2, 3), int)}, "found ids, expected topk_ids"),
        ({"topk_ids": np.zeros((2, 3), int)}, "found topk_ids of shape (2, 3)"),
        ({"topk_ids": np.zeros((1, 2, 3))}, "found topk_ids of shape (1, 2, 3) float64"),
        ({"topk_ids": np.zeros((0, 2, 3), int)}, "found topk_ids of shape (0, 2, 3)"),
        ({"topk_ids": np.full((1, 2, 3), -2)}, "topk_ids: found ids -2..-2"),
        ({"topk_ids": np.zeros((1, 2, 3), int), "num_experts": -4}, "num_experts: found -4"),
        ({"topk_ids": np.full((1, 2, 3), 9), "num_experts": 4}, "topk_ids: found ids 9..9, expected -1..3"),
        ({"topk_ids": np.full((1, 2, 3), 70000)}, "experts: found 70001, expected <= 4096"),
        ({"topk_ids": np.zeros((1, 2, 3), int), "layer_ids": [1, 2]}, "layer_ids: found [1, 2]"),
        ({"topk_ids": np.array([[[None]]])}, "cannot be read as a trace"),
    ],
)
def test_bad_traces(tmp_path: Path, call: Callable[..., Answer], arrays: dict[str, object], line: str) -> None:
    """Wrong arrays in an .npz: one line that names the file."""
    path = tmp_path / "trace.npz"
    np.savez(path, **arrays)
    refused(call("replay", path, *CLUSTER), f"{path}: ", line)


@pytest.mark.parametrize("name", ["trace.npz", "window.safetensors"])
@hypothesis_settings(
    deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files(files: Path, name: str, data: st.DataObject) -> None:
    """Truncated anywhere or with flipped bytes: read as a window, or refused in one line; nothing else."""
    whole = (files / name).read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        at = data.draw(st.one_of(st.integers(0, len(damaged) - 1), st.integers(0, min(400, len(damaged) - 1))))
        damaged[at] ^= data.draw(st.integers(1, 255))
    path = files / f"damaged-{name}"
    path.write_bytes(damaged)
    message = f"{path}: none"
    try:
        read_window(path)
    except PluginError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_missing_trace(call: Callable[..., Answer], tmp_path: Path) -> None:
    for name in ("missing.npz", "missing.safetensors", ""):
        refused(call("replay", tmp_path / name, *CLUSTER), "cannot be read")
