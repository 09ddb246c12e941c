"""The windows that a running server with the plugin leaves in its state directory, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import PluginError, mismatch
from ..runtime.state_directory import measures
from ..statistics import KIND, RoutingStatistics, load_window

POLL_SECONDS = 0.2
Recorded = tuple[RoutingStatistics, dict[str, Any]]


def collect(folder: Path, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Recorded:
    """All windows that end within `seconds`, merged, and the header of their files.

    Raises PluginError if none ends, or if the folder gets those of several models.
    """
    if not folder.is_dir():
        fix = "pass the folder that the settings call state_directory"
        raise mismatch("--state", found=f"no folder {folder}", expected="the server's state_directory", fix=fix)
    seen = {path: _version(path) for path in _files(folder)}
    merged: Recorded | None = None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sleep(POLL_SECONDS)
        for path in _files(folder):
            version = _version(path)
            if version is None or seen.get(path) == version:
                continue
            seen[path] = version
            merged = _merge(merged, load_window(path), path)
    if merged is None:
        fix = "pass more --seconds, lower step_interval, or send the server requests"
        raise mismatch(str(folder), found=f"no window that ended within {seconds:g} s", expected="one", fix=fix)
    window, header = merged
    return window, {**header, **measures(window)}


def _merge(known: Recorded | None, found: Recorded, path: Path) -> Recorded:
    if known is None:
        return found
    if known[1].get("model") != found[1].get("model") or known[1].get("phase") != found[1].get("phase"):
        names = " and ".join(f"{one[1].get('model')} ({one[1].get('phase')})" for one in (known, found))
        fix = "pass --model to choose one"
        raise mismatch(str(path.parent), found=f"windows of {names}", expected="one model", fix=fix)
    try:
        return known[0].merge(found[0]), found[1]
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*.{KIND}.safetensors"))


def _version(path: Path) -> tuple[int, int] | None:
    """Another one for every file that was renamed to this name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
