"""The engine asks its workers, through vLLM's own calls, whether the plugin is active in them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.serial_utils import run_method

from eplb_plugin.engines.vllm import state
from eplb_plugin.engines.vllm.presence import refuse_inactive
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig


class Workers(UniProcExecutor):
    """Two workers that are called as those of other processes are: with the pickled function."""

    def __init__(self, installed: bool = True) -> None:
        self.installed = installed

    def collective_rpc(self, method: Any, *_: Any, **__: Any) -> list[Any]:
        sent = cloudpickle.dumps(method)
        with pytest.MonkeyPatch.context() as patch:
            if not self.installed:
                patch.setitem(sys.modules, method.__module__, None)
            return [run_method(object(), sent, (), {}) for _ in range(2)]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    logger = logging.getLogger("eplb_plugin")
    before = logger.handlers, logger.propagate, logger.level
    yield
    state._active = None
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def test_active_everywhere_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the number of workers, where vLLM's lines go."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [handler])
    state.set_active(state.Active(PluginConfig(), None))
    refuse_inactive(Workers(), "info")
    assert lines == ["eplb_plugin is active in each of 2 workers"]


def test_workers_that_did_not_activate_are_counted() -> None:
    """The plugin is installed there and was told to do nothing."""
    with pytest.raises(PluginError, match="plugin: found 2 of 2 workers without it, expected active in every worker"):
        refuse_inactive(Workers(), "info")


def test_workers_without_the_package_are_told_of() -> None:
    """The package is missing there, so that not even the question arrives."""
    with pytest.raises(PluginError) as caught:
        refuse_inactive(Workers(installed=False), "info")
    assert "plugin: found a worker that does not know it (ModuleNotFoundError: " in str(caught.value)
    assert "; fix: install eplb-plugin on every node; " in str(caught.value)
