"""Maps of other programs as placements: what is taken for which layers, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli_files import CLUSTER, Answer, refused
from eplb_plugin import Placement


@pytest.mark.parametrize("reader", ["sglang", "vllm-ascend", "tensorrt-llm"])
def test_a_map_of_another_program_is_the_placement_in_force(
    call: Callable[..., Answer], files: Path, reader: str
) -> None:
    """Exported and given as --previous, nothing moves that would not from our own file; replay has its figures."""
    own, other = files / "own.safetensors", files / ("map.yaml" if reader == "tensorrt-llm" else "map.json")
    rows = np.tile(np.random.default_rng(0).permutation(32)[np.arange(40) % 32], (2, 1))
    Placement(rows, np.array([3, 4])).save(own, {"num_ranks": 4})
    assert call("export", own, other, "--for", reader)[0] == 0
    words, found = (files / "window.safetensors", *CLUSTER, "--policy", "balanced"), []
    for previous in (own, other):
        code, out, err = call("plan", *words, "--out", files / "made.safetensors", "--previous", previous, "--json")
        assert (code, err) == (0, "")
        found.append({**json.loads(out), "seconds": 0.0})
        code, out, err = call("replay", files / "window.safetensors", *CLUSTER, "--placement", previous, "--json")
        found[-1]["replayed"] = json.loads(out)["mean"]
    assert found[0] == found[1]
    assert found[0]["moved_slots"] < 40
    code, out, err = call("replay", files / "window.safetensors", *CLUSTER, "--placement", other)
    assert f"{other}: " in out
    assert "slots of 32 experts" in out


def test_maps_that_do_not_fit_are_refused(call: Callable[..., Answer], files: Path) -> None:
    """Another EP group's devices, another model's layers, and layers that a bare trace does not name."""
    placed = Placement(np.tile(np.arange(40) % 32, (3, 1)), np.array([2, 3, 4]))
    placed.export("vllm-ascend", files / "map.json", num_ranks=8)
    words = ("plan", files / "window.safetensors", *CLUSTER, "--out", files / "made.safetensors", "--previous")
    refused(call(*words, files / "map.json"), "map.json: devices: found 8, expected 4")
    placed.export("vllm-ascend", files / "map.json", num_ranks=4)
    refused(call(*words, files / "map.json"), "map.json: found 3 layers, expected the trace's 2")
    Placement(placed.phy2log[:2], np.array([1, 3])).export("tensorrt-llm", files / "map.yaml")
    refused(call(*words, files / "map.yaml"), "map.yaml: found layers [1, 3], expected [3, 4]")
    placed.export("sglang", files / "map.json")
    refused(
        call("plan", files / "trace.npz", *CLUSTER, "--out", files / "made", "--previous", files / "map.json"),
        "map.json: found 5 layers, expected the trace's 2, numbered 0 to 1; fix: pass a trace with layer_ids",
    )
    refused(
        call(*words, files / "trace.npz"), "trace.npz: cannot be read as a placement file (it is an .npz of arrays)"
    )
    (files / "notes.txt").write_text("hello")
    refused(
        call(*words, files / "notes.txt"), "of no kind that is known); fix: pass what `eplb-plugin plan` has written"
    )
