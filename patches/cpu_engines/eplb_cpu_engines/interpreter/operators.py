"""Operators between plain tensors, and between one and a number: the NumPy call that the stock interpreter ends in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder, interpreter_semantic

from .tensors import FLAGS, FLOATS, INTEGERS, NUMBERS, constant, is_block, tensor

_common_types: dict[tuple[str, str], tl.dtype] = {}
_ranges: dict[tuple[int, int], tl.tensor] = {}


def _between(
    call: Callable, kinds: dict, *, mirrored: bool = False, mixed: bool = True, flag: bool = False
) -> Callable:
    """mirrored: the operator of the right side; mixed: two types are brought to a common one; flag: it compares."""

    def make(stock: Callable) -> Callable:
        def operator(self: tl.tensor, other: Any, _semantic: Any = None) -> tl.tensor:
            dtype, left, block = self.dtype, self.handle.data, is_block(self)
            if kinds.get(dtype.name) is not left.dtype:
                return stock(self, other)
            if type(other) is tl.tensor:
                right, block = other.handle.data, block or is_block(other)
                if kinds.get(other.dtype.name) is not right.dtype:
                    return stock(self, other)
                if other.dtype.name != dtype.name:
                    if not mixed or "int1" in (dtype.name, other.dtype.name):
                        return stock(self, other)
                    dtype = _common_type(dtype, other.dtype)
                    left, right = left.astype(kinds[dtype.name]), right.astype(kinds[dtype.name])
            else:
                right = constant(other, left.dtype)
                if right is None or dtype.name == "int1":
                    return stock(self, other)
            return tensor(call(right, left) if mirrored else call(left, right), tl.int1 if flag else dtype, block)

        return operator

    return make


def _common_type(one: tl.dtype, other: tl.dtype) -> tl.dtype:
    key = one.name, other.name
    if key not in _common_types:
        _common_types[key] = interpreter_semantic.computation_type_impl(one, False, other, False, False)
    return _common_types[key]


def _of_pointers_too(make: Callable) -> Callable:
    """Addition: also of integers to a pointer, in bytes."""

    def make_both(stock: Callable) -> Callable:
        plain = make(stock)

        def add(self: tl.tensor, other: Any, _semantic: Any = None) -> tl.tensor:
            if type(other) is not tl.tensor:
                return plain(self, other)
            pointer, offset = (other, self) if other.dtype.is_ptr() else (self, other)
            if not pointer.dtype.is_ptr() or offset.dtype.name not in INTEGERS:
                return plain(self, other)
            size = max(1, pointer.handle.get_element_ty().primitive_bitwidth // 8)
            moved = pointer.handle.data + size * offset.handle.data.astype(np.uint64)
            return tensor(moved, pointer.dtype, is_block(pointer) or is_block(offset))

        return add

    return make_both


def _to(stock: Callable) -> Callable:
    def to(self: tl.tensor, dtype: Any, *rest: Any, _semantic: Any = None, **named: Any) -> tl.tensor:
        target = NUMBERS.get(dtype.name) if type(dtype) is tl.dtype and not (rest or named) else None
        if target is None or self.dtype.name not in NUMBERS | FLAGS:
            return stock(self, dtype, *rest, **named)
        if dtype.name == self.dtype.name:
            return self
        return tensor(self.handle.data.astype(target), dtype, is_block(self))

    return to


def _where(stock: Callable) -> Callable:
    def where(condition: Any, x: Any, y: Any, _semantic: Any = None) -> tl.tensor:
        like = x if type(x) is tl.tensor else y
        if type(like) is not tl.tensor or like.dtype.name not in NUMBERS or not _is_flag(condition):
            return stock(condition, x, y)
        sides = [_side(x, like), _side(y, like)]
        if sides[0] is None or sides[1] is None:
            return stock(condition, x, y)
        block = any(type(one) is tl.tensor and is_block(one) for one in (condition, x, y))
        return tensor(np.where(condition.handle.data, *sides), like.dtype, block)

    return where


def _side(value: Any, like: tl.tensor) -> np.ndarray | np.generic | None:
    if type(value) is tl.tensor:
        return value.handle.data if value.dtype.name == like.dtype.name else None
    return constant(value, NUMBERS[like.dtype.name])


def _is_flag(value: Any) -> bool:
    return type(value) is tl.tensor and value.dtype.name == "int1"


def _arange(stock: Callable) -> Callable:
    def arange(start: Any, end: Any, _semantic: Any = None) -> tl.tensor:
        if type(start) is not int or type(end) is not int:
            return stock(start, end)
        if (start, end) not in _ranges:  # tensors never change
            _ranges[start, end] = stock(start, end)
        return _ranges[start, end]

    return arange


def _program_id(stock: Callable) -> Callable:
    def program_id(axis: Any, _semantic: Any = None) -> tl.tensor:
        if axis not in (0, 1, 2):
            return stock(axis)
        return tensor(np.array([interpreter_builder.grid_idx[axis]], np.int32), tl.int32, False)

    return program_id


FUNCTIONS = {"arange": _arange, "program_id": _program_id, "where": _where}
OPERATORS = {
    "to": _to,
    "__add__": _of_pointers_too(_between(np.add, NUMBERS)),
    "__radd__": _between(np.add, NUMBERS, mirrored=True),
    "__sub__": _between(np.subtract, NUMBERS),
    "__rsub__": _between(np.subtract, NUMBERS, mirrored=True),
    "__mul__": _between(np.multiply, NUMBERS),
    "__rmul__": _between(np.multiply, NUMBERS, mirrored=True),
    "__truediv__": _between(np.divide, FLOATS),
    "__rtruediv__": _between(np.divide, FLOATS, mirrored=True),
    "__and__": _between(np.bitwise_and, INTEGERS | FLAGS),
    "__or__": _between(np.bitwise_or, INTEGERS | FLAGS),
    "__xor__": _between(np.bitwise_xor, INTEGERS | FLAGS),
    # whether the sign fills the places is decided by the left type, not by the common one
    "__lshift__": _between(np.left_shift, INTEGERS, mixed=False),
    "__rshift__": _between(np.right_shift, INTEGERS, mixed=False),
    "__lt__": _between(np.less, NUMBERS, flag=True),
    "__le__": _between(np.less_equal, NUMBERS, flag=True),
    "__gt__": _between(np.greater, NUMBERS, flag=True),
    "__ge__": _between(np.greater_equal, NUMBERS, flag=True),
    "__eq__": _between(np.equal, NUMBERS, flag=True),
    "__ne__": _between(np.not_equal, NUMBERS, flag=True),
}
