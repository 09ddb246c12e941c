"""Items by descending weight, in linear time: what a packing heuristic needs, where the last digits do not matter."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel

DIGIT = 256


@kernel
def _pass(keys: Array, shift: int, order: Array, result: Array) -> None:
    """One stable pass of a radix sort by eight bits of the keys, descending."""
    start = np.zeros(DIGIT + 1, np.int64)
    for key in keys:
        start[DIGIT - ((key >> shift) & (DIGIT - 1))] += 1
    for digit in range(1, DIGIT + 1):
        start[digit] += start[digit - 1]
    for item in order:
        digit = DIGIT - 1 - ((keys[item] >> shift) & (DIGIT - 1))
        result[start[digit]] = item
        start[digit] += 1


@kernel
def heaviest_first(weight: Array) -> Array:
    """weight: [items] int64 >= 0 -> [items] int64 order, exact to 1/65536 of the heaviest; ties: the lower number."""
    items, heaviest = weight.shape[0], weight.max()
    shift = 0
    while heaviest >> shift >= DIGIT * DIGIT:
        shift += 1
    keys = weight >> shift
    order, result = np.arange(items), np.empty(items, np.int64)
    _pass(keys, 0, order, result)
    _pass(keys, 8, result, order)
    return order
