"""How every numeric kernel is compiled: cached on disk, without the GIL, sequential, so results depend on nothing else.

Sequential on purpose: planning runs in a background thread of a server, and numba's parallel loops may not be entered
from two threads at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array: TypeAlias = NDArray[Any]


def _source_digest() -> str:
    package = Path(__file__).parent
    sources = [*sorted(package.glob("planning/*.py")), *sorted(package.glob("dispatch/*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


_DIGEST = _source_digest()


def kernel(function: Function) -> Function:
    """Compile on first call.

    numba renews a cached kernel when its own file changes, but not when a kernel that it calls changes in another file;
    so the digest of all of them is part of the name that the cache goes by.
    """
    function.__qualname__ += f"_{_DIGEST}"
    return njit(cache=True, nogil=True)(function)
