"""Items by descending weight, in linear time for weights that are not nearly all equal."""

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
    """weight: [items] float64 -> [items] int64 order; ties: the lower number."""
    items, heaviest = weight.shape[0], weight.max()
    scale = (DIGIT * DIGIT - 1) / heaviest if heaviest > 0.0 else 0.0
    keys = np.empty(items, np.int64)
    for item in range(items):
        keys[item] = int(weight[item] * scale)
    order, result = np.arange(items), np.empty(items, np.int64)
    _pass(keys, 0, order, result)
    _pass(keys, 8, result, order)
    for place in range(1, items):  # what differs in later digits only: hardly anything is left to do
        item, at = order[place], place
        while at > 0 and weight[order[at - 1]] < weight[item]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = item
    return order
