"""Tables of loads: read with and without names, refused with the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.workloads.trace import Shape, read_trace


def written(folder: Path, text: str) -> Path:
    (folder / "loads.txt").write_text(text)
    return folder / "loads.txt"


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("5,1,0,2\n1,1,3,3\n", [0, 1]),
        ("\ufeff5;1;0;2\r\n1;1;3;3\r\n\r\n", [0, 1]),
        ("e0\te1\te2\te3\n5\t1\t0\t2\n1\t1\t3\t3", [0, 1]),
        ("layer,e0,e1,e2,e3\n3,5,1,0,2\n7,1,1,3,3\n", [3, 7]),
        (",0,1,2,3\n3,5,1,0,2\n7,1.0,1,3e0,3,\n", [3, 7]),
        ('"Layer","0","1","2","3"\n"3","5","1","0","2"\n"7","1","1","3","3"\n', [3, 7]),
    ],
)
def test_tables(tmp_path: Path, text: str, layers: list[int]) -> None:
    """A layer a line: whatever stands between the numbers, with names or without; the first name may say `layer`."""
    reading = read_trace(written(tmp_path, text), Shape())
    assert reading.window.load.tolist() == [[5, 1, 0, 2], [1, 1, 3, 3]]
    assert reading.window.layer_ids.tolist() == layers
    size = f"2 layers ({layers[0]} to {layers[1]}), loads only, of 4 experts"
    assert reading.understood == f"{tmp_path / 'loads.txt'}: a table of numbers, {size}"


def test_layers_of_several_sizes(tmp_path: Path) -> None:
    """A plan is for one size: the number of experts says which, and the others are told to be left out."""
    path = written(tmp_path, "1,2,3,4\n1,2\n4,3,2,1\n")
    with pytest.raises(
        PluginError, match=r"layers of 4 and of 2 experts, expected layers of one size; fix: .* 4 to plan"
    ):
        read_trace(path, Shape())
    reading = read_trace(path, Shape(num_experts=4))
    assert reading.window.layer_ids.tolist() == [0, 2]
    assert reading.understood.endswith("; 1 layers of other sizes left out")


@pytest.mark.parametrize("ending", ["txt", "npy"])
def test_a_table_on_its_side_is_refused(tmp_path: Path, ending: str) -> None:
    """More layers than experts, unless the user says so: a model of 32 layers may have 8 experts."""
    path = written(tmp_path, "1,2\n3,4\n5,6\n")
    if ending == "npy":
        np.save(tmp_path / "loads.npy", np.array([[1, 2], [3, 4], [5, 6]], np.float32))
        path = tmp_path / "loads.npy"
    with pytest.raises(PluginError, match=r"3 rows × 2 columns.*turn it on its side, or pass --num-experts 2"):
        read_trace(path, Shape())
    assert read_trace(path, Shape(num_experts=2)).window.load.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1,2,3\n1,x,3\n", "line 2: found 'x', expected counts of a layer's experts"),
        ("1,2,3\n\n1,1_0,3\n", "line 3: found '1_0'"),
        ("layer,a,b\n0.5,1,2\n", "line 2: found 0.5, expected a decoder layer"),
        ("layer,a,b\n3,1,2\n4\n", "line 3: found no numbers"),
        ("layer,a,b\n", "found no line of numbers"),
        ("layer,a,b\n4,1,2\n3,1,2\n", "layer_ids: found [4, 3]"),
        ("1,-2,3\n", "load"),
        ("1,nan,3\n", "load"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "loads.csv"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        read_trace(path, Shape())
    assert str(caught.value).startswith(f"{path}: ")
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
