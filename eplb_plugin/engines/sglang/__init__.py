"""SGLang: the entry point `sglang.srt.plugins`, called in every SGLang process."""

from __future__ import annotations

import os
import sys

from ..settings import ENVIRONMENT, FLAG, REPLAY, disabled


def register() -> None:
    """Register the entrance so that a server can be told to use the plugin. `EPLB_PLUGIN_DISABLE=1`: nothing at all.

    SGLang only logs what a plugin raises and starts without it. A server that was told to use the plugin ends instead.
    """
    if disabled():
        return
    from ...errors import PluginError, stop
    from .registry import register_hooks
    from .startup_hooks import STARTUP_HOOKS

    if os.environ.get(REPLAY):
        _replay(os.environ[REPLAY])
    try:
        register_hooks(STARTUP_HOOKS)  # SGLang applies what was registered when all plugins have been asked
    except PluginError as error:
        if os.environ.get(ENVIRONMENT) or any(word.startswith(FLAG) for word in sys.argv):
            stop(error)
        raise


def _replay(words: str) -> None:
    from ...errors import PluginError, stop
    from .simulation import register_replay

    try:
        register_replay(words)
    except PluginError as error:
        stop(error)
