"""Loads and stores through plain pointers: the interpreter's own call, with mask and filler made by NumPy.

One value is not the stock interpreter's: a scalar's filler of -0.0 stays one, as on a GPU, where it becomes 0.0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import _interpreter

from .tensors import NUMBERS, is_block, tensor


def _load(stock: Callable) -> Callable:
    def load(pointer: Any, mask: Any = None, other: Any = None, *rest: Any, _semantic: Any = None, **named: Any) -> Any:
        target = None if rest or named else _target(pointer)
        given = None if target is None else _mask(pointer, mask)
        if given is None or (mask is None and other is not None):
            return stock(pointer, mask, other, *rest, **named)
        filler = _entries(pointer, 0 if other is None else other, target)
        if filler is None:
            return stock(pointer, mask, other)
        read = _interpreter.load(pointer.handle.data, given, filler, target)
        return tensor(read, pointer.dtype.element_ty, is_block(pointer))

    return load


def _store(stock: Callable) -> Callable:
    def store(pointer: Any, value: Any, mask: Any = None, *rest: Any, _semantic: Any = None, **named: Any) -> Any:
        target = None if rest or named else _target(pointer)
        given = None if target is None or pointer.dtype.is_const() else _mask(pointer, mask)
        entries = None if given is None else _entries(pointer, value, target)
        if entries is None:
            return stock(pointer, value, mask, *rest, **named)
        _interpreter.store(pointer.handle.data, entries, given)

    return store


def _target(pointer: Any) -> np.dtype | None:
    """The type of what a plain pointer points to."""
    if type(pointer) is not tl.tensor or not pointer.dtype.is_ptr():
        return None
    return NUMBERS.get(pointer.dtype.element_ty.name)


def _mask(pointer: tl.tensor, mask: Any) -> np.ndarray | None:
    if mask is None:
        return np.ones(pointer.handle.data.shape, dtype=bool)
    return mask.handle.data if _alike(mask, pointer) and mask.dtype.name == "int1" else None


def _entries(pointer: tl.tensor, value: Any, target: np.dtype) -> np.ndarray | None:
    """As many values as there are pointers."""
    shape = pointer.handle.data.shape
    if _alike(value, pointer):
        known = NUMBERS.get(value.dtype.name)
        return None if known is None else value.handle.data.astype(target, copy=False)
    if type(value) is int or (type(value) is float and target.kind == "f"):
        try:
            return np.full(shape, value, target)
        except OverflowError:
            return None
    return None


def _alike(value: Any, pointer: tl.tensor) -> bool:
    if type(value) is not tl.tensor or is_block(value) != is_block(pointer):
        return False
    return value.handle.data.shape == pointer.handle.data.shape


FUNCTIONS = {"load": _load, "store": _store}
