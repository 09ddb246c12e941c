"""Ranks that are even in every part of the traffic, not only in its sum.

Experts that are used together are also busy together: where one kind of text follows another, ranks that are even over
all of it are the busiest one in turns, and locality makes it worse. A step waits for its busiest rank, so that what
counts is the busiest rank's load of every part, added up. (The mean over scenarios instead of the scenario of means:
sample average approximation, Kleywegt, Shapiro and Homem-de-Mello 2002.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...jit import Array, kernel
from ...statistics import RoutingStatistics
from ..traffic.node_visits import most_arrivals, real_changes, swap_changes, worth_of
from .swap_state import SwapState, cost_of, is_affordable, makes_twins, swap

MOST = 8  # parts: time grows with them
PRICE = 5.0  # a busiest rank lighter by 1 % of a mean rank's load is worth 5 % of the crossings
LEAST = 1e-3  # crossings per token that a swap must be worth, and for every weight that a rank must receive …
REAL_LEAST = 0.05  # … where ranks hold weights already
SWEEPS = 12
LEAST_LOAD = 1e-6  # of the mean expert load: an idle expert still has to be somewhere, and shares divide by loads
LEAST_REAL = 0.1  # of what parts differ by, or they are taken for one


def parts_of(statistics: RoutingStatistics, layer: int) -> Array:
    """[W, E] float64 loads whose sum is the layer's, at most `MOST`, neighbours added up; a single row if there are no
    parts, or none that differ by more than noise.

    What differs is shrunk towards the mean by the share of it that counting explains (Poisson; James and Stein 1961),
    so that nothing is made even that is uneven by chance alone.
    """
    load = np.array(statistics.load[layer], np.float64)[None]
    if statistics.parts is None:
        return load
    parts = statistics.parts[:, layer].astype(np.float64)
    parts = parts[parts.any(axis=1)]
    if len(parts) < 2:
        return load
    size = parts.sum(axis=1)
    group = ((np.cumsum(size) - size) / load.sum() * MOST).astype(np.int64)
    parts = np.add.reduceat(parts, np.flatnonzero(np.diff(group, prepend=-1)))
    mean = parts.sum(axis=1, keepdims=True) * load / load.sum()
    busy = load[0] > 0.0
    found = ((parts - mean)[:, busy] ** 2 / mean[:, busy]).sum()
    by_chance = (len(parts) - 1) * (np.count_nonzero(busy) - 1)
    real = 1.0 - by_chance / max(found, 1e-12)
    return mean + real * (parts - mean) if real > LEAST_REAL else load


def above_zero(load: NDArray[Any]) -> NDArray[np.float64]:
    """load: [..., E] with idle experts as nearly idle ones; a layer without any load counts as even."""
    mean = load.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.maximum(load.astype(np.float64), np.where(mean > 0.0, LEAST_LOAD * mean, 1.0))


def parts_above_zero(statistics: RoutingStatistics, layer: int) -> NDArray[np.float64]:
    """[W, E] `parts_of` a layer whose sum is its load `above_zero`."""
    parts = parts_of(statistics, layer)
    parts[0] += above_zero(statistics.load[layer]) - parts.sum(axis=0)
    return parts


def parts_by_layer(statistics: RoutingStatistics) -> NDArray[np.float64]:
    """[L, W, E] the same of all layers; those with fewer parts have empty ones at the end."""
    found = [parts_above_zero(statistics, layer) for layer in range(statistics.num_layers)]
    most = max(len(parts) for parts in found)
    return np.stack([np.pad(parts, ((0, most - len(parts)), (0, 0))) for parts in found])


@kernel
def busiest_in_turn(slot_load: Array, ranks: int) -> float:
    """slot_load: [W, P] -> load of every part's busiest rank, added up, over that of a mean rank."""
    slots, peaks, total = slot_load.shape[1] // ranks, 0.0, 0.0
    for part in range(slot_load.shape[0]):
        peak = 0.0
        for rank in range(ranks):
            here = slot_load[part, rank * slots : (rank + 1) * slots].sum()
            peak = max(peak, here)
            total += here
        peaks += peak
    return peaks * ranks / total if total > 0.0 else 1.0


@kernel
def _heaviest_three(rank_load: Array, heaviest: Array) -> None:
    """rank_load: [W, ranks] -> heaviest: [W, 3] ranks, -1 = there are fewer."""
    heaviest[:] = -1
    for part in range(rank_load.shape[0]):
        for rank in range(rank_load.shape[1]):
            incoming = rank
            for place in range(3):
                held = heaviest[part, place]
                if held < 0 or rank_load[part, incoming] > rank_load[part, held]:
                    heaviest[part, place], incoming = incoming, held
                if incoming < 0:
                    break


@kernel
def _relief(first: int, second: int, slots: int, slot_load: Array, rank_load: Array, heaviest: Array) -> float:
    """By how much a swap of two slots lowers the parts' busiest ranks, in all."""
    rank, other, lowered = first // slots, second // slots, 0.0
    for part in range(slot_load.shape[0]):
        shift = slot_load[part, first] - slot_load[part, second]
        peak = max(rank_load[part, rank] - shift, rank_load[part, other] + shift)
        for place in range(3):
            third = heaviest[part, place]
            if third >= 0 and third != rank and third != other:
                peak = max(peak, rank_load[part, third])
                break
        lowered += rank_load[part, heaviest[part, 0]] - peak
    return lowered


@kernel
def _worth(
    state: SwapState, first: int, second: int, lowered: float, per_move: float, most: float, least: float
) -> float:
    """Crossings that a swap saves beyond `lowered` and the price of its moves; 0 if that comes to no more than `least`,
    or the swap must not be. most: see `most_arrivals`.
    """
    visits, slots = state.visits, state.cluster.slots_per_rank
    mine, theirs = state.phy2log[first], state.phy2log[second]
    a, b = state.cluster.node_of_rank[first // slots], state.cluster.node_of_rank[second // slots]
    value = lowered
    if a != b:
        if not (state.movable[mine] and state.movable[theirs]):
            return 0.0
        here, there = swap_changes(visits, mine, theirs)
        if value + worth_of(visits, a, b, here, there, most) <= least:  # the tables never rate a swap too low
            return 0.0
    elif value <= least:
        return 0.0
    if makes_twins(state, first, second) or not is_affordable(state, first, second):
        return 0.0
    if a != b:
        here, there = real_changes(visits, mine, theirs)
        value += worth_of(visits, a, b, here, there, most)
    value -= per_move * max(cost_of(state, first, second), 0)
    return value if value > least else 0.0


@kernel
def even_parts(state: SwapState, least: float) -> int:
    """Swap slots while that lowers the parts' busiest ranks or saves crossings for them; returns the swaps.

    slot_load has a row for every part. least: crossings per token that a swap must be worth for every moved slot.
    """
    visits, slots, count = state.visits, state.cluster.slots_per_rank, state.phy2log.shape[0]
    tokens, swaps = max(visits.rows.shape[0], 1), 0
    heaviest = np.empty((state.slot_load.shape[0], 3), np.int64)
    _heaviest_three(state.rank_load, heaviest)
    crossing = float(visits.visited.sum() - visits.own.sum())
    total = max(state.slot_load.sum(), 1e-12)
    price = PRICE * (crossing if crossing > 0.0 else tokens) * state.held.shape[0] / total
    for _ in range(SWEEPS):
        swapped = 0
        for first in range(count):
            if not (heaviest[:, 0] == first // slots).any():  # no swap of it makes a busiest rank lighter
                continue
            best, partner, most = LEAST * tokens, -1, most_arrivals(visits, state.ingress)
            for second in range(count):
                if second // slots == first // slots:
                    continue
                lowered = price * _relief(first, second, slots, state.slot_load, state.rank_load, heaviest)
                worth = _worth(state, first, second, lowered, least * tokens, most, best)
                if worth > best:
                    best, partner = worth, second
            if partner < 0:
                continue
            swap(state, first, partner)
            _heaviest_three(state.rank_load, heaviest)
            swapped += 1
        swaps += swapped
        if swapped == 0:
            break
    return swaps
