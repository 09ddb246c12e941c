"""vLLM: the entry point `vllm.general_plugins`, called in every vLLM process."""

from __future__ import annotations

import os


def register() -> None:
    """Wrap the entrance so that a server can be told to use the plugin. `EPLB_PLUGIN_DISABLE=1`: do nothing at all.

    Imports no numba: vLLM on CPU searches every loaded module for kernels after this, and fails on numba's objects.
    """
    from ..settings import SIMULATION, disabled

    if disabled():
        return
    if os.environ.get(SIMULATION, "").startswith("eplb_plugin:"):
        _simulate(os.environ[SIMULATION])
    from .. import hooks
    from .startup_hooks import STARTUP_HOOKS

    hooks.apply(STARTUP_HOOKS)


def _simulate(strategy: str) -> None:
    from ...errors import PluginError, stop
    from .simulation import register_simulation

    try:
        register_simulation(strategy)
    except PluginError as error:  # vLLM would log a traceback and fail at the first request
        stop(error)
