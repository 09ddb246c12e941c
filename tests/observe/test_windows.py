"""Windows that a server leaves, one after the other: those that end while one looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics, Topology
from eplb_plugin.deployment import Deployment, Phase
from eplb_plugin.observe import windows
from eplb_plugin.runtime.state_directory import measures
from eplb_plugin.statistics import KIND

IDS = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]]])
WINDOW = RoutingStatistics.from_topk(IDS, 4, [1, 3])


def leave(folder: Path, model: str = "moe", window: RoutingStatistics = WINDOW, phase: Phase = "decode") -> None:
    """As a server does: written whole under another name, then renamed."""
    header = Deployment(model, "vllm", phase, Topology(2, 1, 3), 4, (1, 3)).header() | measures(window)
    window.save(folder / "writing", header)
    (folder / "writing").rename(folder / f"{model}.{phase}.{KIND}.safetensors")


class Clock:
    """Leaves something each time that it is looked at, until nothing is left; no time passes but by waiting."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.ahead, self.now = list(steps), 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.ahead:
            self.ahead.pop(0)()


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., windows.Recorded]:
    def run(seconds: float, *steps: Callable[[], None]) -> windows.Recorded:
        clock = Clock(*steps)
        monkeypatch.setattr(windows, "time", clock)
        return windows.collect(tmp_path, seconds, clock.sleep)

    return run


def test_windows_that_end_are_merged(tmp_path: Path, collected: Callable[..., windows.Recorded]) -> None:
    """One that was there before does not count, until it is replaced; one that is seen twice counts once."""
    leave(tmp_path)
    idle = lambda: None  # noqa: E731
    window, header = collected(3.0, idle, lambda: leave(tmp_path), idle, lambda: leave(tmp_path))
    assert np.array_equal(window.load, 2 * WINDOW.load)
    assert (header["model"], header["phase"], header["tokens"]) == ("moe", "decode", 4)


def test_none_is_refused(tmp_path: Path, collected: Callable[..., windows.Recorded]) -> None:
    """No folder, or no window that ended."""
    with pytest.raises(PluginError, match="--state: found no folder"):
        windows.collect(tmp_path / "none", 0.0)
    leave(tmp_path)
    with pytest.raises(PluginError, match=r"found no window that ended within 0\.05 s, expected one"):
        collected(0.05)


def test_windows_of_two_models_are_refused(tmp_path: Path, collected: Callable[..., windows.Recorded]) -> None:
    """By name, by the role of the server, or by what they hold."""
    both = (lambda: leave(tmp_path), lambda: leave(tmp_path, "other"))
    with pytest.raises(PluginError, match=r"found windows of moe \(decode\) and other \(decode\), expected one model"):
        collected(3.0, *both)
    roles = (lambda: leave(tmp_path), lambda: leave(tmp_path, phase="prefill"))
    with pytest.raises(PluginError, match=r"found windows of moe \(decode\) and moe \(prefill\), expected one model"):
        collected(3.0, *roles)
    larger = RoutingStatistics(np.ones((2, 5)), layer_ids=[1, 3])
    grown = (lambda: leave(tmp_path), lambda: leave(tmp_path, window=larger))
    with pytest.raises(PluginError, match=f"^{tmp_path}/moe.decode.*merge"):
        collected(3.0, *grown)
