"""Which kernels this process has compiled, for which types: for processes of their own, which tests start."""

from __future__ import annotations

import sys


def compiled() -> set[str]:
    """Of every module of the package that is loaded."""
    found = set()
    for name in [name for name in sys.modules if name.startswith("eplb_plugin")]:
        for kernel in vars(sys.modules[name]).values():
            if hasattr(kernel, "overloads") and hasattr(kernel, "py_func"):
                found |= {f"{kernel.py_func.__module__}.{kernel.py_func.__name__}{types}" for types in kernel.overloads}
    return found
