"""Counts of routed rows, and checks of counts and of layers' numbers that others made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import mismatch
from .limits import LEAST_COUNT, MOST_COUNT

MOST_STEPS = 64  # of which single loads are kept: a sample of a window's steps


def checked_counts(name: str, counts: ArrayLike) -> NDArray[Any]:
    """The counts, with 0 for those too small to be any. Raises PluginError if one is negative, infinite or unknown."""
    array = np.asarray(counts)
    if array.dtype.kind not in "iuf":
        raise mismatch(name, found=f"dtype {array.dtype}", expected="integers or floats", fix="pass numbers")
    if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= MOST_COUNT):
        expected = f"finite counts, 0 to {MOST_COUNT:g}"
        fix = "correct these values"
        raise mismatch(name, found="a negative, infinite or unknown value", expected=expected, fix=fix)
    if array.dtype.kind == "f" and ((array > 0) & (array < LEAST_COUNT)).any():
        return np.where(array < LEAST_COUNT, array.dtype.type(0), array)
    return array


def checked_layer_ids(layer_ids: ArrayLike | None, layers: int) -> NDArray[np.int32]:
    """[L] int32 decoder-layer numbers, strictly increasing; default 0 … L-1."""
    ids = np.arange(layers) if layer_ids is None else np.asarray(layer_ids)
    if ids.dtype.kind == "u":  # differences of which are never negative
        ids = ids.astype(np.int64)
    if ids.shape != (layers,) or ids.dtype.kind != "i" or (np.diff(ids) <= 0).any() or (ids < 0).any():
        raise mismatch(
            "layer_ids",
            found=ids.tolist(),
            expected=f"{layers} increasing decoder-layer numbers",
            fix="give one number per layer",
        )
    return ids.astype(np.int32)


def count_rows(ids: NDArray[Any], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids: [L, T, k], -1 = none -> load [L, E], pairs [L, E, E] of every two ids of a row, the diagonal is the load."""
    load = np.zeros((len(ids), num_experts), np.int64)
    pairs = np.zeros((len(ids), num_experts, num_experts), np.int64)
    for layer, rows in enumerate(ids):
        # one-hot with a spare column for padding; float32 is exact here: a window has far fewer than 2^24 tokens
        hot = np.zeros((len(rows), num_experts + 1), np.float32)
        np.put_along_axis(hot, np.where(rows < 0, num_experts, rows).astype(np.int64), 1.0, axis=1)
        hot = hot[:, :num_experts]
        pairs[layer] = np.rint(hot.T @ hot).astype(np.int64)
        load[layer] = np.bincount(rows[rows >= 0], minlength=num_experts)
    return load, pairs


def thinned(steps: NDArray[Any], most: int = MOST_STEPS) -> NDArray[Any]:
    """At most so many of them, evenly."""
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), most))
    return steps[np.rint(chosen).astype(np.int64)]


def count_steps(ids: NDArray[Any], steps: NDArray[Any], num_experts: int) -> NDArray[np.int32]:
    """ids: [L, T, k]; steps: [T] -> [S, L, E] of some steps, in their order."""
    if steps.shape != (ids.shape[1],) or steps.dtype.kind not in "iu":
        found, expected = f"shape {steps.shape} {steps.dtype}", f"integers [{ids.shape[1]}]"
        raise mismatch("steps", found=found, expected=expected, fix="pass every token's step")
    numbers = thinned(np.unique(steps))
    loads = np.zeros((len(numbers), len(ids), num_experts), np.int32)
    for place, number in enumerate(numbers):
        for layer, rows in enumerate(ids[:, steps == number]):
            loads[place, layer] = np.bincount(rows[rows >= 0], minlength=num_experts)
    return loads
