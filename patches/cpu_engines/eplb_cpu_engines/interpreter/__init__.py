"""Triton's interpreter with the same values in a fraction of the time: left out is what surrounds each NumPy call.

The stock one rewrites `triton.language` for every launch, and takes each operator through the compiler's checks: a
conversion, a broadcast, a type for every intermediate result, and for integers the same once more in 64 bits, to find
an overflow of which a debug build would tell. Here the language is rewritten once, and what has plain operands
(`tensors`) calls NumPy at once. Everything else goes the stock way, and so does what that would refuse.
"""

from types import SimpleNamespace

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


def _remembered(stock):
    def _get_np_dtype(tt_dtype):
        if tt_dtype.name not in _types:
            _types[tt_dtype.name] = stock(tt_dtype)
        return _types[tt_dtype.name]

    return _get_np_dtype
