"""Published load files: read as loads, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.trace import read_window


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_loads_are_read(tmp_path: Path) -> None:
    """Counts, layer numbers and tokens; whatever else the publisher wrote is not looked at."""
    layers = [{"layer": 3, "heat": [8, 0, 4], "pairs": [[0, 1, 2]]}, {"layer": 5, "heat": [4.0, 4, 4]}]
    window = read_window(write(tmp_path / "loads.json", {"model": "m", "k": 2, "layers": layers}))
    np.testing.assert_array_equal(window.load, [[8, 0, 4], [4, 4, 4]])
    np.testing.assert_array_equal(window.layer_ids, [3, 5])
    np.testing.assert_array_equal(window.num_tokens, [6, 6])
    assert window.sample is None


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ("{", "cannot be read as a load file"),
        ("[" * 100_000, "cannot be read as a load file"),
        ([1], "found no list of layers"),
        ({"layers": []}, "found no list of layers"),
        ({"layers": [{"heat": [1, -2]}]}, "layers[0]: found no counts"),
        ({"layers": [{"heat": [1, None]}]}, "layers[0]: found no counts"),
        ('{"layers": [{"heat": [NaN]}]}', "layers[0]: found no counts"),
        (
            {"layers": [{"heat": [1, 2]}, {"heat": [1]}]},
            "found layers of 2 and of 1 experts, expected layers of one size; fix: pass --num-experts 2",
        ),
        ({"layers": [{"heat": [1], "layer": "0"}]}, "layer: found no number"),
        ({"layers": [{"heat": [1], "layer": 2}, {"heat": [1], "layer": 1}]}, "layer_ids: found [2, 1]"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, document: object, line: str) -> None:
    path = write(tmp_path / "loads.json", document)
    with pytest.raises(PluginError) as caught:
        read_window(path)
    assert str(caught.value).startswith(str(path))
    assert line in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_sglangs_counts(tmp_path: Path) -> None:
    """`logical_count`, which SGLang can start from, by layer or by step and layer; dense layers have none."""
    steps = [[[0, 0, 0], [1, 2, 3]], [[0, 0, 0], [4, 0, 1]]]
    for counts, load in ((steps, [[5, 2, 4]]), (steps[0], [[1, 2, 3]])):
        window = read_window(write(tmp_path / "counts.json", {"logical_count": counts}))
        assert window.load.tolist() == load
        assert window.layer_ids.tolist() == [1]
    for bad in ([[0, 0]], [[1, 2], [1]], [[1, -2]], 3, [], [[None]]):
        with pytest.raises(PluginError, match=r"counts\.json: logical_count: found"):
            read_window(write(tmp_path / "counts.json", {"logical_count": bad}))


def test_layers_of_several_sizes(tmp_path: Path) -> None:
    """Those of the named size are read, by their own numbers."""
    layers = [{"layer": 3, "heat": [1, 2]}, {"layer": 4, "heat": [1, 2, 3]}, {"layer": 5, "heat": [2, 1]}]
    window = read_window(write(tmp_path / "loads.json", {"layers": layers}), num_experts=2)
    assert (window.layer_ids.tolist(), window.load.tolist()) == ([3, 5], [[1, 2], [2, 1]])
