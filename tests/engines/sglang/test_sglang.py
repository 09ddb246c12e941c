"""The entry point that SGLang calls in every process: it only logs what a plugin raises, so ours ends the server."""

from __future__ import annotations

import sys

import pytest

from eplb_plugin.engines.settings import DISABLE, ENVIRONMENT, FLAG
from eplb_plugin.engines.sglang import register, registry
from eplb_plugin.errors import PluginError


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be registered; a process that was told nothing of the plugin."""
    found: list[object] = []
    monkeypatch.setattr(registry, "register_hooks", found.append)
    for name in (DISABLE, ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["sglang", "serve"])
    return found


def test_disabled_it_does_nothing(registered: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE, "1")
    register()
    assert registered == []


def test_it_registers_the_entrance(registered: list[object]) -> None:
    """And no more: runtime hooks are a scheduler's that was told to use the plugin."""
    from eplb_plugin.engines.sglang.startup_hooks import STARTUP_HOOKS

    register()
    assert registered == [STARTUP_HOOKS]


@pytest.mark.parametrize("told", ["environment", "flag", "flag=file", "nothing"])
def test_an_engine_that_does_not_fit(
    registered: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    """A server that was told to use the plugin ends with one line; any other starts without it."""

    def refuse(_: object) -> None:
        raise PluginError("hook: found (a), expected (b); fix: c")

    monkeypatch.setattr(registry, "register_hooks", refuse)
    if told == "environment":
        monkeypatch.setenv(ENVIRONMENT, "{}")
    elif told.startswith("flag"):
        words = [f"{FLAG}=x.yaml"] if told == "flag=file" else [FLAG, "x.yaml"]
        monkeypatch.setattr(sys, "argv", ["sglang", *words])
    if told == "nothing":
        with pytest.raises(PluginError, match=r"^hook: found"):
            register()
        return
    with pytest.raises(SystemExit) as end:
        register()
    assert end.value.code == 2
    assert capsys.readouterr().err == "eplb-plugin: hook: found (a), expected (b); fix: c\n"
