"""The token rows a layer is planned on: the recorder's sample, or rows drawn from pair counts where there is none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..dispatch.rules import HASH_MASK, HASH_MULTIPLIER
from ..jit import Array, kernel
from ..plan_types import Dispatch
from ..statistics import RoutingStatistics
from ..topology import Topology

MAX_ROWS = 8192  # more rows are thinned out evenly: time grows with rows, locality hardly does


class Tokens(NamedTuple):
    """One layer's tokens as the planner sees them.

    rows: [T, K] int16 distinct logical ids, -1 = none; source: [T] int32 rank a token is taken to come from (evenly
    spread); key: [T] int64, by which a token picks among an expert's copies: its source under `nearest`, its hash
    under `hash`. Without rows, crossings do not matter.
    """

    rows: Array
    source: Array
    key: Array


def every(tokens: Tokens, step: int, first: int = 0) -> Tokens:
    """Every `step`-th of the tokens, from `first` on."""
    return Tokens(*(np.ascontiguousarray(part[first::step]) for part in tokens))


def thinned(tokens: Tokens, most: int) -> Tokens:
    """At most `most` of them, evenly."""
    return every(tokens, max(-(-len(tokens.rows) // most), 1))


def no_tokens() -> Tokens:
    return Tokens(np.empty((0, 1), np.int16), np.empty(0, np.int32), np.empty(0, np.int64))


def knows_tokens(statistics: RoutingStatistics) -> bool:
    """Whether it is known which experts a token uses together."""
    return statistics.sample is not None or statistics.coactivation is not None


def layer_tokens(
    statistics: RoutingStatistics, layer: int, topology: Topology, rule: Dispatch, max_rows: int = MAX_ROWS
) -> tuple[Tokens, Array]:
    """At most `max_rows` tokens, and co-activation [E, E] float64, its diagonal zero; statistics must have either."""
    experts = statistics.num_experts
    pairs: Array | None = None
    if statistics.coactivation is not None:
        pairs = statistics.coactivation[layer].astype(np.float64)
        np.fill_diagonal(pairs, 0.0)
    if statistics.sample is not None:
        sample = statistics.sample[layer]
        rows = _without_repeats(np.ascontiguousarray(sample[:: max(-(-len(sample) // max_rows), 1)]))
    else:
        assert pairs is not None
        rows = _draw_rows(pairs, statistics.load[layer].astype(np.float64), max_rows)
    source = _spread_sources(len(rows), topology.num_ranks)
    if rule == "nearest":
        key = source.astype(np.int64)
    else:
        key = np.arange(len(rows), dtype=np.int64) * HASH_MULTIPLIER & HASH_MASK
    return Tokens(rows, source, key), _count_pairs(rows, experts) if pairs is None else pairs


def _draw_rows(pairs: Array, load: Array, count: int) -> Array:
    """[count, k] rows that follow `pairs`; k from the counts themselves: every pick of a token makes k - 1 pairs."""
    total = float(load.sum())
    if total <= 0.0 or not pairs.any():
        return np.full((0, 1), -1, np.int16)
    top_k = min(max(round(1.0 + float(pairs.sum()) / total), 2), 16, len(load))
    return _grow_rows(pairs, load, top_k, count)


@kernel
def scrambled(number: int) -> float:
    """[0, 1): a fixed scramble of an integer (splitmix64), so that nothing depends on a generator's state."""
    mixed = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0


@kernel
def _spread_sources(rows: int, ranks: int) -> Array:
    source = np.empty(rows, np.int32)
    for row in range(rows):
        source[row] = np.int32(scrambled(row + 1) * ranks)
    return source


@kernel
def _without_repeats(sample: Array) -> Array:
    rows = sample.copy()
    for row in range(rows.shape[0]):
        for k in range(1, rows.shape[1]):
            for earlier in range(k):
                if rows[row, k] == rows[row, earlier]:
                    rows[row, k] = -1
    return rows


@kernel
def _count_pairs(rows: Array, experts: int) -> Array:
    pairs = np.zeros((experts, experts))
    for row in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            for other in range(k):
                if rows[row, k] >= 0 and rows[row, other] >= 0:
                    pairs[rows[row, k], rows[row, other]] += 1.0
                    pairs[rows[row, other], rows[row, k]] += 1.0
    return pairs


@kernel
def _draw(weight: Array, point: float) -> int:
    """Index at share `point` of the cumulated weights; -1 if they are all zero."""
    target, seen, last = point * weight.sum(), 0.0, -1
    for index in range(weight.shape[0]):
        if weight[index] > 0.0:
            seen += weight[index]
            last = index
            if seen > target:
                break
    return last


@kernel
def _grow_rows(pairs: Array, load: Array, top_k: int, count: int) -> Array:
    """First expert by load, every further one by its co-activation with those already in the row."""
    rows = np.full((count, top_k), -1, np.int16)
    experts = load.shape[0]
    for row in range(count):
        affinity = np.zeros(experts)
        rows[row, 0] = _draw(load, (row + 0.5) / count)
        for k in range(1, top_k):
            newest = rows[row, k - 1]
            affinity += pairs[newest] / max(load[newest], 1.0)
            for earlier in range(k):
                affinity[rows[row, earlier]] = 0.0
            chosen = _draw(affinity, scrambled(row * top_k + k))
            if chosen < 0:
                break
            rows[row, k] = chosen
    return rows
