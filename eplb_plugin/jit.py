"""How every numeric kernel is compiled: cached on disk, without the GIL, sequential, so results depend on nothing else.

Sequential on purpose: planning runs in a background thread of a server, and numba's parallel loops may not be entered
from two threads at once.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array: TypeAlias = NDArray[Any]


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
    return njit(cache=True, nogil=True)(function)
