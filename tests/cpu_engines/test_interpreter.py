"""The short ways through Triton's interpreter: what they give is the stock interpreter's, to the last bit.

Everything is computed twice in a process of its own: before the short ways are there, and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from eplb_cpu_engines.interpreter import install
from eplb_cpu_engines.interpreter.operators import OPERATORS
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from interpreted import INTERPRETED, compiled, in_interpreter, run_interpreted

NAMES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TYPES = [*map(tl.dtype, [*NAMES, "int1", "fp16", "bf16", "fp32", "fp64"])]
SHAPES = [(), (4,), (2, 4), (2, 1)]
CONSTANTS = [0, 1, -1, 3, 40, 300, 2**31, 2**40, -(2**40), 0.5, -2.5, 1e300, float("-inf"), float("nan"), True]
CONSTANTS.append(tl.constexpr(3))
SOME = [(tl.int32, tl.int64), (tl.float32, tl.float32), (tl.uint32, tl.int32), (tl.int1, tl.int1)]


def made(dtype: tl.dtype, shape: tuple[int, ...], seed: int) -> tl.tensor:
    draw = np.random.default_rng(seed)
    kind = interpreter._get_np_dtype(dtype)
    data = draw.integers(0, 256, (*(shape or (1,)), kind.itemsize), np.uint8)
    if dtype.is_int1():
        data %= 2
    typed = tl.block_type(dtype, list(shape)) if shape else dtype
    return tl.tensor(TensorHandle(data.view(kind)[..., 0], dtype), typed)


def pointers(dtype: tl.dtype, memory: np.ndarray, shape: tuple[int, ...], const: bool = False) -> tl.tensor:
    addresses = memory.ctypes.data + memory.itemsize * np.arange(memory.size, dtype=np.uint64)[::-1].copy()
    kind = tl.pointer_type(dtype, const=const)
    data = addresses[: np.prod(shape, dtype=int)].reshape(shape or (1,))
    return tl.tensor(TensorHandle(data, kind), tl.block_type(kind, list(shape)) if shape else kind)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """Type and bytes of what it returns, or what it refuses. The handle's own type is left out: the stock interpreter
    notes there the operands' type of a comparison.
    """
    try:
        with np.errstate(all="ignore"):
            result = call(*arguments)
    except Exception as error:
        return type(error).__name__
    if result is None or result.handle is None:  # of a store
        return None
    data = result.handle.data
    return str(result.type), str(result.shape), data.dtype.str, data.shape, data.tobytes()


def between_tensors() -> Iterator[tuple[str, Any]]:
    for one, other, left, right in product(TYPES, TYPES, SHAPES, SHAPES):
        x, y = made(one, left, 1), made(other, right, 2)
        if (left in ((), (4,)) and right == (4,)) or (one, other) in SOME:
            for name in OPERATORS.keys() - {"to"}:
                yield f"{one} {left} {name} {other} {right}", outcome(getattr(x, name), y)


def with_constants() -> Iterator[tuple[str, Any]]:
    for one, shape, value, name in product(TYPES, [(), (4,)], CONSTANTS, OPERATORS.keys() - {"to"}):
        yield f"{one} {shape} {name} {value}", outcome(getattr(made(one, shape, 1), name), value)


def functions() -> Iterator[tuple[str, Any]]:
    for one, other, shape in product(TYPES, TYPES, SHAPES):
        x, y = made(one, shape, 1), made(other, shape, 2)
        yield f"{one} {shape} to {other}", outcome(x.to, other)
        for flags, value in product(SHAPES if one is other else [(4,)], [y, made(other, (), 2), 3, 300, -1, 0.5, True]):
            name = f"where {flags} {one} {shape} {other} {value}"
            yield name, outcome(tl.where, made(tl.int1, flags, 3), x, value)
            yield f"{name} turned", outcome(tl.where, made(tl.int1, flags, 3), value, x)
    for start, end in [(0, 8), (4, 8), (0, 6), (tl.constexpr(0), 8), (3, 1)]:
        yield f"arange {start} {end}", outcome(tl.arange, start, end)
    interpreter.interpreter_builder.set_grid_dim(3, 4, 5)
    interpreter.interpreter_builder.set_grid_idx(2, 3, 4)
    for axis in (0, 1, 2, 3, tl.constexpr(1)):
        yield f"program_id {axis}", outcome(tl.program_id, axis)


def memory() -> Iterator[tuple[str, Any]]:
    for dtype, shape in product(TYPES, SHAPES):
        kind = interpreter._get_np_dtype(dtype)
        entries = made(dtype, (8,), 4).handle.data.copy()
        fillers = [None, 0, 7, 300, -1, 0.5, True, *(made(other, shape, 8) for other in TYPES), made(dtype, (), 6)]
        cases = [(made(tl.int1, shape, 5), value, False) for value in fillers]
        masks = [None, True, *(made(tl.int1, one, 5) for one in SHAPES), made(tl.int32, shape, 5)]
        cases += [(mask, value, const) for mask in masks for value in fillers[:2] for const in (False, True)]
        for number, (mask, value, const) in enumerate(cases):
            name = f"{dtype} {shape} {number}"
            yield f"load {name}", outcome(tl.load, pointers(dtype, entries, shape, const), mask, value)
            written = np.zeros(8, kind)
            told = outcome(tl.store, pointers(dtype, written, shape, const), value, mask)
            yield f"store {name}", told if isinstance(told, str) else written.tobytes()
        yield (
            f"cached {dtype} {shape}",
            outcome(
                lambda entries=entries, dtype=dtype, shape=shape: tl.load(
                    pointers(dtype, entries, shape), cache_modifier=".ca"
                )
            ),
        )


def addresses() -> Iterator[tuple[str, Any]]:
    for element, other, shape, moved in product(TYPES, TYPES, SHAPES, [(), (4,)]):
        kind = tl.pointer_type(element)
        data = np.full(shape or (1,), 2**40, np.uint64)
        pointer = tl.tensor(TensorHandle(data, kind), tl.block_type(kind, list(shape)) if shape else kind)
        offset = made(other, moved, 7)
        yield f"{element} {shape} + {other} {moved}", outcome(pointer.__add__, offset)
        yield f"{other} {moved} + {element} {shape}", outcome(offset.__add__, pointer)
        yield f"{element} {shape} + 5 {other} {moved}", outcome(pointer.__add__, 5)


PARTS = {one.__name__: one for one in (between_tensors, with_constants, functions, memory, addresses)}
STOCK: dict[str, dict[str, Any]] = {}
if INTERPRETED:
    scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    STOCK = {name: dict(part()) for name, part in PARTS.items()}
    scope.restore()
    install()


@compiled
def test_in_the_interpreter() -> None:
    """The tests below, under TRITON_INTERPRET=1."""
    assert "8 passed" in run_interpreted(__file__)


@in_interpreter
@pytest.mark.parametrize("part", PARTS)
def test_every_result_is_the_stock_interpreters(part: str) -> None:
    """Types, shapes, bytes and refusals, over all pairs of types, shapes that broadcast, constants in and out
    of range."""
    ours = dict(PARTS[part]())
    assert ours.keys() == STOCK[part].keys()
    wrong = {name: (STOCK[part][name], ours[name]) for name in ours if ours[name] != STOCK[part][name]}
    assert not wrong, f"{len(wrong)} of {len(ours)}, first {list(wrong.items())[:3]}"


@in_interpreter
def test_plain_operands_never_come_to_the_compilers_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are what costs the time."""
    x, flags = made(tl.float32, (4,), 1), made(tl.int1, (4,), 2)
    pointer = pointers(tl.float32, np.zeros(8, np.float32), (4,))
    for name in ("binary_op_type_checking_impl", "broadcast_impl_value", "cast", "load", "store", "where"):
        monkeypatch.setattr(interpreter.interpreter_semantic, name, None)
    index = tl.program_id(0).to(tl.int64) * 4 + tl.arange(0, 4)
    y = tl.load(pointer + (index & 1), mask=(index < 8) & flags, other=0.0)
    tl.store(pointer, tl.where(flags, x + y, 0.0))


@triton.jit
def doubled(x, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)


@in_interpreter
def test_the_language_is_rewritten_once() -> None:
    """A launch finds it so and leaves it so."""
    import torch

    x, before = torch.arange(5), tl.load
    doubled[(3,)](x, 5, BLOCK=2)
    assert x.tolist() == [0, 2, 4, 6, 8]
    assert tl.load is before


@triton.jit
def marked(x, count, BLOCK: tl.constexpr):
    for row in tl.range(tl.program_id(0), 4, tl.num_programs(0)):
        at = row.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, -1, mask=(row < 2) & ((at % 2) == 0) & (at < count))


@in_interpreter
def test_what_the_stock_interpreter_refuses_of_vllms_warm_up() -> None:
    """A loop's variable converted (top-k), and the flag of a scalar beside a block's in a mask (grammars)."""
    import torch

    x = torch.arange(8)
    marked[(2,)](x, 3, BLOCK=2)
    assert x.tolist() == [-1, 1, -1, 3, 4, 5, 6, 7]
