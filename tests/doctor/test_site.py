"""A place without anything special: what it can show it does, what it cannot is skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eplb_plugin.doctor.site import Site, Skipped

HERE = Site(torch.device("cpu"))


def test_actions_are_run_as_often_as_said() -> None:
    """A capture runs once to be compiled and once a replay; a measurement once more than it repeats."""
    runs: list[str] = []
    replay = HERE.capture(lambda: runs.append("captured"))
    replay()
    HERE.beside(lambda: runs.append("one"), lambda: runs.append("other"))
    assert runs == ["captured", "captured", "one", "other"]
    runs.clear()
    assert HERE.seconds(lambda: runs.append("measured"), 3) >= 0.0
    assert len(runs) == 4


def test_sizes_are_small_unless_asked_for() -> None:
    """A CPU is done in a second; real models' sizes are for GPUs."""
    assert HERE.pick(1000, 2) == 2
    assert Site(torch.device("cpu"), full=True).pick(1000, 2) == 1000
    assert (HERE.free, HERE.allocated, HERE.graphs) == (None, None, False)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: HERE.no_waits(), "nobody waits for a cpu"),
        (lambda: HERE.memory(lambda: None), "the memory of a cpu is not counted"),
        (lambda: HERE.spin(1.0), "a cpu has no stream to keep busy"),
    ],
)
def test_what_it_cannot_show_is_skipped(ask: Callable[[], object], said: str) -> None:
    """By a word for the report."""
    with pytest.raises(Skipped, match=said):
        ask()
