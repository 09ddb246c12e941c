"""vLLM: the entry point `vllm.general_plugins`, called in every vLLM process."""

from __future__ import annotations


def register() -> None:
    """Wrap the entrance so that a server can be told to use the plugin. `EPLB_PLUGIN_DISABLE=1`: do nothing at all.

    Imports no numba: vLLM on CPU searches every loaded module for kernels after this, and fails on numba's objects.
    """
    from ..settings import disabled

    if disabled():
        return
    from .. import hooks
    from .entrance import ENTRANCE

    hooks.apply(ENTRANCE)
