"""Hooks through SGLang's own HookRegistry: it also mends the copies that `from X import Y` made in other modules."""

from __future__ import annotations

from collections.abc import Iterable

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from .. import hooks
from ..hooks import Hook


def register_hooks(rows: Iterable[Hook]) -> None:
    """Register those hooks of a table that are not in force yet, all or, with a PluginError, none."""
    for row in hooks.fitting(rows):
        # a row that replaces is registered like one that goes around: it gets the original and does not call it
        HookRegistry.register(row.target.replace(":", "."), row.wrapper, HookType.AROUND)


def apply(rows: Iterable[Hook]) -> None:
    """Register, apply and verify a table. Raises PluginError if a hook does not fit or is not in force afterwards.

    SGLang patches a target once: if another plugin has hooked it before, ours is not applied, and that is an error.
    """

    def install(missing: list[Hook]) -> None:
        register_hooks(missing)
        HookRegistry.apply_hooks()

    hooks.apply(rows, install)
