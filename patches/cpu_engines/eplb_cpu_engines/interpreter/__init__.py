"""Triton's interpreter with the same values in a fraction of the time: left out is what surrounds each NumPy call.

The stock one rewrites `triton.language` for every launch, and takes each operator through the compiler's checks: a
conversion, a broadcast, a type for every intermediate result, and for integers the same once more in 64 bits, to find
an overflow of which a debug build would tell. Here the language is rewritten once, and what has plain operands
(`tensors`) calls NumPy at once. Everything else goes the stock way, and so does what that would refuse, but for two
things of vLLM's warm-up: a loop's variable is a tensor, and the flag of a comparison stays one when it is widened.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

from ..patching import replace, require
from . import memory, operators

_types: dict[str, object] = {}


def install() -> None:
    builder = interpreter.interpreter_builder
    require("debug=False", f"debug={builder.options.debug}")  # else overflows are told
    builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    replace(interpreter, "_patch_lang", "fn", lambda stock: lambda fn: interpreter._LangPatchScope())
    replace(interpreter, "_get_np_dtype", "tt_dtype", _remembered)
    for name, make in operators.OPERATORS.items():
        setattr(tl.tensor, name, make(getattr(tl.tensor, name)))
    for module in (tl, tl.core):
        for name, make in (operators.FUNCTIONS | memory.FUNCTIONS).items():
            setattr(module, name, make(getattr(module, name)))
        module.range = _range


def _remembered(stock):
    def _get_np_dtype(tt_dtype):
        if tt_dtype.name not in _types:
            _types[tt_dtype.name] = stock(tt_dtype)
        return _types[tt_dtype.name]

    return _get_np_dtype


def _range(first: Any, end: Any = None, step: Any = None, **hints: Any) -> Iterator[tl.tensor]:
    """A loop's variable is a tensor, as the compiler has it, and not a number: vLLM's kernels convert it."""
    for value in range(first) if end is None else range(first, end, 1 if step is None else step):
        yield interpreter.interpreter_semantic.to_tensor(value)
