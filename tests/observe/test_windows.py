"""Windows that a server leaves, one after the other: those that end while one looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics, Topology
from eplb_plugin.deployment import Deployment, Phase
from eplb_plugin.observe.windows import collect
from eplb_plugin.state import measures
from eplb_plugin.statistics import KIND

IDS = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]]])
WINDOW = RoutingStatistics.from_topk(IDS, 4, [1, 3])


def leave(folder: Path, model: str = "moe", window: RoutingStatistics = WINDOW, phase: Phase = "decode") -> None:
    """As a server does: written whole under another name, then renamed."""
    header = Deployment(model, "vllm", phase, Topology(2, 1, 3), 4, (1, 3)).header() | measures(window)
    window.save(folder / "writing", header)
    (folder / "writing").rename(folder / f"{model}.{phase}.{KIND}.safetensors")


def while_waiting(*steps: Callable[[], None]) -> Callable[[float], None]:
    """A clock that leaves something each time that it is looked at."""
    ahead = list(steps)
    return lambda seconds: ahead.pop(0)() if ahead else None


def test_windows_that_end_are_merged(tmp_path: Path) -> None:
    """One that was there before does not count, until it is replaced; one that is seen twice counts once."""
    leave(tmp_path)
    idle = lambda: None  # noqa: E731
    window, header = collect(tmp_path, 0.3, while_waiting(idle, lambda: leave(tmp_path), idle, lambda: leave(tmp_path)))
    assert np.array_equal(window.load, 2 * WINDOW.load)
    assert (header["model"], header["phase"], header["tokens"]) == ("moe", "decode", 4)


def test_none_is_refused(tmp_path: Path) -> None:
    """No folder, or no window that ended."""
    with pytest.raises(PluginError, match="--state: found no folder"):
        collect(tmp_path / "none", 0.0)
    leave(tmp_path)
    with pytest.raises(PluginError, match=r"found no window that ended within 0\.05 s, expected one"):
        collect(tmp_path, 0.05, while_waiting())


def test_windows_of_two_models_are_refused(tmp_path: Path) -> None:
    """By name, by the role of the server, or by what they hold."""
    both = while_waiting(lambda: leave(tmp_path), lambda: leave(tmp_path, "other"))
    with pytest.raises(PluginError, match=r"found windows of moe \(decode\) and other \(decode\), expected one model"):
        collect(tmp_path, 0.3, both)
    roles = while_waiting(lambda: leave(tmp_path), lambda: leave(tmp_path, phase="prefill"))
    with pytest.raises(PluginError, match=r"found windows of moe \(decode\) and moe \(prefill\), expected one model"):
        collect(tmp_path, 0.3, roles)
    larger = RoutingStatistics(np.ones((2, 5)), layer_ids=[1, 3])
    grown = while_waiting(lambda: leave(tmp_path), lambda: leave(tmp_path, window=larger))
    with pytest.raises(PluginError, match=f"^{tmp_path}/moe.decode.*merge"):
        collect(tmp_path, 0.3, grown)
