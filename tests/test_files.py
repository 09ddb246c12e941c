"""Files: written whole or not at all, and refused in one line when they are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from eplb_plugin.errors import PluginError
from eplb_plugin.files import FORMAT_VERSION, load_arrays, save_arrays, write_atomic

ARRAYS = {"load": np.arange(12, dtype=np.int64).reshape(3, 4), "layer_ids": np.arange(3, dtype=np.int32)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "window.safetensors"
    save_arrays(path, "statistics", ARRAYS, {"model": "m"})
    return path


def refusal(path: Path, kind: str = "statistics") -> str:
    with pytest.raises(PluginError) as caught:
        load_arrays(path, kind)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(str(path))
    assert "; fix: " in message
    return message


def test_round_trip(saved: Path) -> None:
    """What was saved comes back with its types, and the header with what the caller added."""
    arrays, header = load_arrays(saved, "statistics")
    assert header == {"kind": "statistics", "version": FORMAT_VERSION, "model": "m"}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_not_contiguous_arrays_are_saved_as_they_look(tmp_path: Path) -> None:
    """A transposed or sliced array is saved by its values, not by its memory."""
    square = np.arange(16).reshape(4, 4)
    save_arrays(tmp_path / "f", "statistics", {"t": square.T, "s": square[::2, 1:]}, {})
    arrays, _ = load_arrays(tmp_path / "f", "statistics")
    np.testing.assert_array_equal(arrays["t"], square.T)
    np.testing.assert_array_equal(arrays["s"], square[::2, 1:])


def test_write_makes_folders(tmp_path: Path) -> None:
    """A missing folder is made."""
    write_atomic(tmp_path / "a" / "b" / "file", b"data")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("exception", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_write_leaves_the_old_file(
    saved: Path, step: str, exception: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while writing, the old file is there as it was and no temporary file is left."""
    before = saved.read_bytes()

    def fail(*_: Any) -> None:
        raise exception

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(exception)):
        save_arrays(saved, "statistics", {"load": np.zeros(1)}, {})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_write_leaves_no_temporary_file(saved: Path) -> None:
    """After a good write there is the file alone."""
    write_atomic(saved, b"new")
    assert saved.read_bytes() == b"new"
    assert list(saved.parent.iterdir()) == [saved]


def test_written_file_is_readable_by_others(tmp_path: Path) -> None:
    """The file has the permissions that any new file would have, not a temporary file's."""
    write_atomic(tmp_path / "file", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_missing_and_folder_refused(tmp_path: Path) -> None:
    """A missing file and a folder are refused."""
    refusal(tmp_path / "missing")
    refusal(tmp_path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_refused(saved: Path, share: float) -> None:
    """A file cut off anywhere is refused."""
    data = saved.read_bytes()
    cut = saved.with_name("cut")
    cut.write_bytes(data[: int(len(data) * share)])
    refusal(cut)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64))
def test_foreign_bytes_refused(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no safetensors file are refused."""
    path = tmp_path / "foreign"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, "no eplb_plugin header"),
        ({"other": "x"}, "no eplb_plugin header"),
        ({"eplb_plugin": "[1]"}, "no eplb_plugin header"),
        ({"eplb_plugin": "{"}, "cannot be read"),
        ({"eplb_plugin": json.dumps({"kind": "placement", "version": FORMAT_VERSION})}, "placement v1"),
        ({"eplb_plugin": json.dumps({"kind": "statistics", "version": 99})}, "statistics v99"),
        ({"eplb_plugin": json.dumps({"kind": "a\nb", "version": 1})}, "found a b v1"),
    ],
)
def test_other_files_refused(tmp_path: Path, header: dict[str, str] | None, found: str) -> None:
    """A safetensors file of something else, of another kind or another version is refused by what it is."""
    path = tmp_path / "other"
    path.write_bytes(save({"load": np.zeros(2)}, metadata=header))
    assert found in refusal(path)


def test_type_that_numpy_lacks_refused(tmp_path: Path) -> None:
    """A file with a type that numpy does not know is refused like any other."""
    header = {"__metadata__": {"eplb_plugin": json.dumps({"kind": "statistics", "version": FORMAT_VERSION})}}
    text = json.dumps({**header, "load": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "other"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0")
    refusal(path)
