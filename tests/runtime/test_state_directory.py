"""What survives a restart: written whole or not at all, taken up only where it fits."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics, Topology, files
from eplb_plugin.deployment import Deployment
from eplb_plugin.placement import linear_placement
from eplb_plugin.runtime.state_directory import StateDirectory, read_placement

DEPLOYMENT = Deployment("/models/Some-MoE", "vllm", "decode", Topology(2, 1, 3), 4, (1, 3))
WINDOW = RoutingStatistics.from_topk(np.array([[[0, 1], [2, 3]]] * 2), 4, [1, 3])
PLACEMENT = linear_placement(2, 4, 6, [1, 3])


def kept(folder: Path) -> StateDirectory:
    """A directory that an earlier run has left."""
    state = StateDirectory(folder)
    state.keep_placement(DEPLOYMENT, PLACEMENT)
    state.keep_window(DEPLOYMENT, WINDOW)
    wait_for(state.window_file(DEPLOYMENT))
    return state


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_kept_is_taken_up(tmp_path: Path) -> None:
    """The same arrays, under the names of model and phase, also for the model in another folder."""
    kept(tmp_path)
    names = ["Some-MoE.decode.placement.safetensors", "Some-MoE.decode.statistics.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    found = StateDirectory(tmp_path).earlier(replace(DEPLOYMENT, model="elsewhere/Some-MoE/"))
    assert found.placement is not None
    assert found.window is not None
    np.testing.assert_array_equal(found.placement.phy2log, PLACEMENT.phy2log)
    np.testing.assert_array_equal(found.window.load, WINDOW.load)


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks wait for rank 0 to have read them."""
    state, opened, open_file = kept(tmp_path), [], files.safe_open

    def noting(path: str, **named: Any) -> Any:
        opened.append(Path(path))
        return open_file(path, **named)

    monkeypatch.setattr(files, "safe_open", noting)
    assert state.earlier(DEPLOYMENT).window is not None
    assert opened == [state.placement_file(DEPLOYMENT), state.window_file(DEPLOYMENT)]


def test_nothing_kept_is_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A first start finds an empty folder, or none."""
    found = StateDirectory(tmp_path / "new").earlier(DEPLOYMENT)
    assert found.placement is None
    assert found.window is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"engine": "sglang"}, "engine: found vllm, expected sglang"),
        ({"topology": Topology(2, 2, 2)}, "slots: found 6, expected 8"),
        ({"topology": Topology(3, 1, 2)}, "num_ranks: found 2, expected 3"),
        ({"topology": Topology(1, 2, 3)}, "num_nodes: found 2, expected 1"),
        ({"num_experts": 5}, "experts: found 4, expected 5"),
        ({"layer_ids": (1, 2)}, "layers: found [1, 3], expected [1, 2]"),
    ],
)
def test_what_does_not_fit_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict[str, object], line: str
) -> None:
    """One line says why, and the server starts without it."""
    kept(tmp_path)
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        found = StateDirectory(tmp_path).earlier(replace(DEPLOYMENT, **other))  # type: ignore[arg-type]
    assert found.placement is None
    assert line in caplog.messages[0]
    assert len(caplog.messages[0].splitlines()) == 1


def test_another_model_of_the_same_name_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was renamed carries its model in its header."""
    state = kept(tmp_path)
    other = replace(DEPLOYMENT, model="Other")
    state.placement_file(DEPLOYMENT).rename(state.placement_file(other))
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        assert state.earlier(other).placement is None
    assert "model: found /models/Some-MoE, expected Other" in caplog.text


def test_a_damaged_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The window is still taken up."""
    state = kept(tmp_path)
    path = state.placement_file(DEPLOYMENT)
    path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        found = state.earlier(DEPLOYMENT)
    assert found.placement is None
    assert found.window is not None
    assert "cannot be read as a placement file" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Serving goes on, and the log is not filled."""
    (tmp_path / "file").write_text("")
    state = StateDirectory(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        for _ in range(3):
            state.keep_window(DEPLOYMENT, WINDOW)
        deadline = time.monotonic() + 30
        while not state.idle:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.text


def test_a_named_file_may_be_of_the_other_engine(tmp_path: Path) -> None:
    """Placements carry decoder-layer numbers and serve both; what was made without a header fits by its shape."""
    path = tmp_path / "named.safetensors"
    PLACEMENT.save(path, replace(DEPLOYMENT, engine="sglang").placement_header())
    assert not read_placement(path, DEPLOYMENT)[0].moves_from(PLACEMENT).any()
    PLACEMENT.save(path)
    read_placement(path, DEPLOYMENT)
    with pytest.raises(PluginError, match="slots: found 6, expected 8"):
        read_placement(path, replace(DEPLOYMENT, topology=Topology(2, 2, 2)))
