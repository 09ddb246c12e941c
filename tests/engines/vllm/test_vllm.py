"""The entry point that vLLM calls in every process: nothing where disabled, a simulation where one is asked for."""

from __future__ import annotations

import pytest

from eplb_plugin.engines import hooks
from eplb_plugin.engines.settings import DISABLE, SIMULATION
from eplb_plugin.engines.vllm import register, simulation
from eplb_plugin.errors import PluginError


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be hooked."""
    found: list[object] = []
    monkeypatch.setattr(hooks, "apply", found.append)
    monkeypatch.delenv(DISABLE, raising=False)
    monkeypatch.delenv(SIMULATION, raising=False)
    return found


def test_disabled_it_does_nothing(applied: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the simulation that is asked for."""
    monkeypatch.setenv(DISABLE, "1")
    monkeypatch.setenv(SIMULATION, "eplb_plugin:/no/trace.npz")
    register()
    assert applied == []


def test_it_wraps_the_entrance(applied: list[object]) -> None:
    """And no more: runtime hooks are a worker's that was told to use the plugin."""
    from eplb_plugin.engines.vllm.startup_hooks import STARTUP_HOOKS

    register()
    assert applied == [STARTUP_HOOKS]


@pytest.mark.parametrize("strategy", ["eplb_plugin:/x.npz", "uniform_random"])
def test_a_simulation_of_ours_is_registered(
    applied: list[object], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """vLLM's own strategies are vLLM's."""
    asked: list[str] = []
    monkeypatch.setattr(simulation, "register_simulation", asked.append)
    monkeypatch.setenv(SIMULATION, strategy)
    register()
    assert asked == ([strategy] if strategy.startswith("eplb_plugin:") else [])
    assert len(applied) == 1


def test_a_simulation_that_cannot_be_ends_the_process(
    applied: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one line and code 2; vLLM would fail at the first request."""

    def refuse(strategy: str) -> None:
        raise PluginError("x.npz: cannot be read")

    monkeypatch.setattr(simulation, "register_simulation", refuse)
    monkeypatch.setenv(SIMULATION, "eplb_plugin:x.npz")
    with pytest.raises(SystemExit) as end:
        register()
    assert end.value.code == 2
    assert capsys.readouterr().err == "eplb-plugin: x.npz: cannot be read\n"
    assert applied == []
