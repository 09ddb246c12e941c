"""How every numeric kernel is compiled: cached on disk, without the GIL, sequential, so results depend on nothing else.

Sequential on purpose: planning runs in a background thread of a server, and numba's parallel loops may not be entered
from two threads at once.
"""

from __future__ import annotations

import ast
import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from numba import njit
from numba.core import event
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array: TypeAlias = NDArray[Any]
logger = logging.getLogger("eplb_plugin")


@cache
def _imported(source: Path) -> list[Path]:
    """Files of this package that a file imports from."""
    files = []
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = source.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            files += [folder.with_suffix(".py"), *(folder / f"{name.name}.py" for name in node.names)]
    return [file for file in files if file.is_file()]


@cache
def _digest(source: Path) -> str:
    """Of a file and of all that it imports, directly or not."""
    reached, ahead = {source}, [source]
    while ahead:
        new = set(_imported(ahead.pop())) - reached
        reached |= new
        ahead += new
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(reached))).hexdigest()[:8]


def kernel(function: Function) -> Function:
    """Compile on first call.

    numba renews a cached kernel when its own file changes, but not when a kernel that it calls changes in another file;
    so the digest of all files which the kernel can reach is part of the name that the cache goes by.
    """
    function.__qualname__ += f"_{_digest(Path(function.__code__.co_filename))}"
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        _warn_uncached()
        return njit(nogil=True)(function)


def is_cached() -> bool:
    """Whether there is a folder to keep compiled kernels in."""
    return not _warn_uncached.cache_info().currsize


@cache
def _warn_uncached() -> None:
    logger.warning(
        "compiled kernels: found no folder to cache them in, expected a writable one; every start compiles them again, "
        "for up to a minute; fix: set NUMBA_CACHE_DIR"
    )


class _Announcement(event.Listener):  # type: ignore[misc]  # numba has no types
    """One line, when the first kernel of this process has to be compiled: without it, a command seems to hang."""

    def on_start(self, event: Any) -> None:
        _announce()

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


@cache
def _announce() -> None:
    logging.getLogger("eplb_plugin.compiling").debug(
        "compiling the planner for this machine, once (up to a minute; `eplb-plugin precompile` does it ahead)"
    )


event.register("numba:compile", _Announcement())
