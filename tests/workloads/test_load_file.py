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
        ({"layers": [{"heat": [1, 2]}, {"heat": [1]}]}, "layers[1]: found 1 experts, expected 2"),
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
