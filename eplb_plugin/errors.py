"""The one exception that a user sees: a single line that says what was found, what was expected, and how to fix it."""

from __future__ import annotations

import sys
from typing import NoReturn


class PluginError(Exception):
    """Bad input or an engine that does not fit. Never carries a traceback to the user; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def mismatch(what: str, *, found: object, expected: object, fix: str) -> PluginError:
    """Build the standard message `what: found …, expected …; fix: …`."""
    return PluginError(f"{what}: found {found}, expected {expected}; fix: {fix}")


def stop(error: PluginError) -> NoReturn:
    """End this process with that line: an engine would log a traceback, or log it and go on."""
    print(f"eplb-plugin: {error}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None
