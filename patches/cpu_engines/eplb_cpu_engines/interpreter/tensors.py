"""Tensors as the interpreter has them: an array, a scalar's being one of one entry, and a type that says which it is.

Plain are those of the types below. bfloat16 and the 8-bit floats are integers to NumPy, so they are not, and flags
(int1) are in a few operators only.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

FLAGS = {"int1": np.dtype(bool)}
FLOATS = {"fp32": np.dtype(np.float32), "fp64": np.dtype(np.float64)}
INTEGERS = {name: np.dtype(name) for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")}
NUMBERS = FLOATS | INTEGERS


def tensor(data: np.ndarray, dtype: tl.dtype, block: bool) -> tl.tensor:
    """What `tl.tensor` makes, but for each shape only once."""
    shape = data.shape if block else ()
    forms = dtype.__dict__.setdefault("_forms", {})
    if shape not in forms:
        made = tl.tensor(None, tl.block_type(dtype, list(shape)) if block else dtype)
        forms[shape] = vars(made)
    handle = object.__new__(TensorHandle)
    handle.data, handle.dtype, handle.attr = data, dtype, {}
    result = object.__new__(tl.tensor)
    result.__dict__ = {**forms[shape], "handle": handle}
    return result


def is_block(one: tl.tensor) -> bool:
    return one.type is not one.dtype


def constant(value: Any, target: np.dtype) -> np.generic | None:
    """A number of Python's as an entry of a plain tensor; None if Triton would choose another type, or refuse it."""
    if type(value) is int or (type(value) is float and target.kind == "f"):
        try:
            return target.type(value)
        except OverflowError:
            return None
    return None
