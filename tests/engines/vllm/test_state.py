"""What a worker process knows: the settings in force, and what ends before experts' memory may go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eplb_plugin.engines.vllm import state
from eplb_plugin.engines.vllm.state import Active, before_sleep, finish_all, get_active, is_active, set_active
from eplb_plugin.settings.config import PluginConfig


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just begun."""
    finish: list[Callable[[], None]] = []
    monkeypatch.setattr(state, "_active", None)
    monkeypatch.setattr(state, "_finish", finish)


def test_nothing_is_active_before_it_is_set() -> None:
    """A hook that runs too early is a mistake of ours, and said so."""
    assert not is_active(None)
    with pytest.raises(AssertionError, match="before activate"):
        get_active()
    active = Active(PluginConfig(), object())
    set_active(active)
    assert is_active(None)
    assert get_active() is active


def test_all_that_uses_the_memory_ends_in_order() -> None:
    """Of every model, each time; with none there is nothing to end."""
    ended: list[str] = []
    finish_all()
    before_sleep(lambda: ended.append("target"))
    before_sleep(lambda: ended.append("draft"))
    finish_all()
    finish_all()
    assert ended == ["target", "draft"] * 2
