"""Bare loads, one row of counts per layer, from whatever file: layers of one size, as statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import PluginError, mismatch
from ..statistics import RoutingStatistics


class Loads(NamedTuple):
    """rows: of every layer, the counts of its experts. numbers: decoder layers. top_k: 0 = not known."""

    rows: Sequence[Sequence[float]]
    numbers: Sequence[int]
    top_k: int = 0


def window_of(path: str | os.PathLike[str], given: Loads, num_experts: int | None) -> tuple[RoutingStatistics, str]:
    """Statistics of the layers that have `num_experts`, if that is known, and a word on those left out.

    Raises PluginError for layers of several sizes where it is not known which are meant: a plan is for one size.
    """
    sizes = [len(row) for row in given.rows]
    kept, note = range(len(sizes)), ""
    if len(set(sizes)) > 1:
        found = f"layers of {' and of '.join(map(str, sorted(set(sizes), reverse=True)))} experts"
        if num_experts not in sizes:
            fix = f"pass --num-experts {max(sizes)} to plan for those layers, and again for the others"
            raise mismatch(str(path), found=found, expected="layers of one size", fix=fix)
        kept = [layer for layer, size in enumerate(sizes) if size == num_experts]  # type: ignore[assignment]
        note = f"; {len(sizes) - len(kept)} layers of other sizes left out"
    load = np.array([given.rows[layer] for layer in kept], np.float64)
    tokens = np.rint(load.sum(axis=1) / given.top_k).astype(np.int64) if 1 <= given.top_k <= load.shape[1] else None
    try:
        numbers = np.array([given.numbers[layer] for layer in kept])
        return RoutingStatistics(load, num_tokens=tokens, layer_ids=numbers), note  # type: ignore[arg-type]
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None


def refuse_sideways(path: str | os.PathLike[str], rows: int, columns: int, num_experts: int | None) -> None:
    """A table without names is taken for [layers, experts] unless that would be odd and nobody said so."""
    if rows > columns and num_experts is None:
        fix = f"turn it on its side, or pass --num-experts {columns} if that is so"
        found = f"{rows} rows × {columns} columns: more layers than experts"
        raise mismatch(str(path), found=found, expected="[layers, experts]", fix=fix)
