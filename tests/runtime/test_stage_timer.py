"""Stages: timed, and told when one does not end."""

from __future__ import annotations

import threading

import pytest

from eplb_plugin.runtime import stage_timer
from eplb_plugin.runtime.stage_timer import StageTimer


def test_stages_are_timed_once() -> None:
    """Also one that fails; what was taken is gone."""
    timed = StageTimer()
    with timed("snapshot"):
        pass
    with pytest.raises(ValueError, match="bad"), timed("plan"):
        raise ValueError("bad")
    assert list(timed.taken()) == ["snapshot", "plan"]
    assert timed.taken() == {}


def test_a_stage_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it lasts, from another thread; one that ends in time is not."""
    told, heard = [], threading.Event()
    monkeypatch.setattr(stage_timer, "STALLED_SECONDS", 0.05)

    def stalled(stage: stage_timer.Stage) -> None:
        told.append(stage)
        heard.set()

    timed = StageTimer(stalled)
    with timed("agree"):
        assert heard.wait(30)
    monkeypatch.setattr(stage_timer, "STALLED_SECONDS", 3600.0)
    with timed("plan"):
        pass
    assert told == ["agree"]
    for watch in [one for one in threading.enumerate() if isinstance(one, threading.Timer)]:
        watch.join(30)
        assert not watch.is_alive(), "a watch outlives its stage"
