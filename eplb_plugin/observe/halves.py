"""Two halves of a recording: one to plan on, the other to judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch
from ..statistics import RoutingStatistics


def whole_steps(window: RoutingStatistics, tokens: float | None) -> int | None:
    """`tokens` of a step as a number of rows; None if halves of the window's rows have not one whole step."""
    step_tokens = None if tokens is None else max(1, round(tokens))
    return step_tokens if step_tokens is not None and len(_rows(window)) // 2 >= step_tokens else None


def split(window: RoutingStatistics, step_tokens: int | None = None) -> list[RoutingStatistics]:
    """Of the token rows in their order; of the selections, drawn, where there are no rows.

    Single steps are those of `step_tokens` rows; where that is not said, the recorded ones, in their order.
    """
    if window.sample is None or len(_rows(window)) < 2:
        return _with_steps(window, _drawn(window))
    rows = window.sample[:, _rows(window)]
    middle, halves = rows.shape[1] // 2, []
    for half in (rows[:, :middle], rows[:, middle:]):
        steps = None if step_tokens is None else np.arange(half.shape[1]) // step_tokens
        halves.append(RoutingStatistics.from_topk(half, window.num_experts, window.layer_ids, steps=steps))
    return halves if step_tokens is not None else _with_steps(window, halves)


def _rows(window: RoutingStatistics) -> NDArray[np.int64]:
    """Places of rows that any layer filled."""
    return np.empty(0, np.int64) if window.sample is None else np.flatnonzero((window.sample >= 0).any(axis=(0, 2)))


def _with_steps(window: RoutingStatistics, halves: list[RoutingStatistics]) -> list[RoutingStatistics]:
    if window.steps is None or len(window.steps) < 2:
        return halves
    middle = len(window.steps) // 2
    parts = window.steps[:middle], window.steps[middle:]
    return [replace(half, steps=part) for half, part in zip(halves, parts, strict=True)]


def _drawn(window: RoutingStatistics) -> list[RoutingStatistics]:
    if not window.load.any():
        raise mismatch("recording", found="no selection", expected="some traffic", fix="record while serving")
    counts = np.rint(window.load).astype(np.int64)
    first = np.random.default_rng(0).binomial(counts, 0.5)
    tokens = window.num_tokens // 2
    return [RoutingStatistics(half, num_tokens=tokens, layer_ids=window.layer_ids) for half in (first, counts - first)]
