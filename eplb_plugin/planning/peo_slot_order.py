"""Order the slots inside a rank so that every round of per-expert overlap has an even load.

Round r works on the r-th slice of every rank's slots, and all wait for the slowest: a round costs the load of its
busiest rank, and one hides behind another only if they cost alike. Where an expert is too hot for that, the ranks' hot
rounds should at least coincide, so heavier rounds come first. Which rank serves a token does not change: only slots of
one rank change places, which is a copy inside its memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import mismatch
from ..jit import Array, kernel
from ..placement import Placement
from ..plan_types import Plan

Scalar = TypeVar("Scalar", bound=np.generic)
TOLERANCE = 0.03  # share above which a rank's round is too heavy; forecasts of loads are not better than that
MIN_GAIN = 0.01  # of a layer's cost, for which slots are copied


def check_rounds(num_rounds: int | None, slots_per_rank: int) -> None:
    """Raises PluginError if the rounds do not divide the slots of a rank; None: no rounds."""
    if num_rounds is not None and (num_rounds < 1 or slots_per_rank % num_rounds):
        counts = ", ".join(str(count) for count in range(1, slots_per_rank + 1) if slots_per_rank % count == 0)
        expected = f"a divisor of {slots_per_rank} slots per rank"
        raise mismatch("peo_rounds", found=num_rounds, expected=expected, fix=f"one of {counts}")


def even_rounds(plan: Plan, load: ArrayLike, num_rounds: int) -> Plan:
    """`plan` with slots reordered within their ranks; slots of rounds that are even enough stay where they are.

    load: [L, E] selections of every expert. Every weight stays with its copy, so that all tokens go to the same ranks.
    Raises PluginError if the rounds do not divide the slots of a rank.
    """
    slots = plan.topology.slots_per_rank
    check_rounds(num_rounds, slots)
    phy2log = plan.placement.phy2log.astype(np.int64)
    order = _order(_slot_load(plan, load), phy2log, slots, num_rounds, TOLERANCE)

    return replace(
        plan,
        placement=Placement(_ordered(plan.placement.phy2log, order), plan.placement.layer_ids),
        replica_weights=_ordered(plan.replica_weights, order),
        source_weights=None if plan.source_weights is None else _ordered(plan.source_weights, order),
        cover_weights=None if plan.cover_weights is None else _ordered(plan.cover_weights, order),
    )


def round_cost(plan: Plan, load: ArrayLike, num_rounds: int) -> NDArray[np.float64]:
    """load: [L, E] -> [L] >= 1.0: the quadratic mean of what rounds cost, relative to a round's share of the busiest
    rank; 1.0 = as if the busiest rank were alone, in even rounds."""
    return _costs(_slot_load(plan, load), plan.topology.slots_per_rank, num_rounds)


def _ordered(values: NDArray[Scalar], order: NDArray[np.int64]) -> NDArray[Scalar]:
    """values: [..., L, P], order: [L, P]."""
    return np.take_along_axis(values, np.broadcast_to(order, values.shape), axis=-1)


def _slot_load(plan: Plan, load: ArrayLike) -> NDArray[np.float64]:
    """[L, P] selections that a slot serves."""
    of_expert = np.take_along_axis(np.asarray(load, np.float64), plan.placement.phy2log.astype(np.int64), axis=1)
    return np.ascontiguousarray(of_expert * plan.replica_weights)


@kernel
def _order(slot_load: Array, phy2log: Array, slots: int, rounds: int, tolerance: float) -> Array:
    """slot_load, phy2log: [L, P] -> [L, P] the old slot of every new one, never of another rank."""
    layers, total = slot_load.shape
    order = np.empty((layers, total), np.int64)
    for layer in range(layers):
        load, as_is, evened = slot_load[layer], np.arange(total), np.arange(total)
        limit = _busiest(load, slots) / rounds * (1.0 + tolerance)
        profile = np.zeros(rounds)  # of the costs of rounds, if every rank were as even as it can be
        for first in range(0, total, slots):
            mine = evened[first : first + slots]
            _exchange(load, mine, rounds, limit)
            _heavy_rounds_first(load, mine, rounds)
            _keep_twins(phy2log[layer], mine)
            profile = np.maximum(profile, _by_round(load, mine, rounds))
        for first in range(0, total, slots):
            rank = slice(first, first + slots)
            fits = (_by_round(load, as_is[rank], rounds) <= profile * (1.0 + tolerance)).all()
            order[layer, rank] = as_is[rank] if fits else evened[rank]
        if _cost(load, order[layer], slots, rounds) > (1.0 - MIN_GAIN) * _cost(load, as_is, slots, rounds):
            order[layer] = as_is
    return order


@kernel
def _costs(slot_load: Array, slots: int, rounds: int) -> Array:
    costs, as_is = np.empty(slot_load.shape[0]), np.arange(slot_load.shape[1])
    for layer in range(slot_load.shape[0]):
        costs[layer] = _cost(slot_load[layer], as_is, slots, rounds)
    return costs


@kernel
def _cost(load: Array, order: Array, slots: int, rounds: int) -> float:
    peak = np.zeros(rounds)
    for first in range(0, order.shape[0], slots):
        peak = np.maximum(peak, _by_round(load, order[first : first + slots], rounds))
    busiest = _busiest(load, slots)
    return np.sqrt((peak * peak).sum() * rounds) / busiest if busiest > 0.0 else 1.0


@kernel
def _busiest(load: Array, slots: int) -> float:
    most = 0.0
    for first in range(0, load.shape[0], slots):
        most = max(most, load[first : first + slots].sum())
    return most


@kernel
def _by_round(load: Array, order: Array, rounds: int) -> Array:
    """order: [slots] of one rank -> [rounds] load."""
    loads, size = np.zeros(rounds), order.shape[0] // rounds
    for place in range(order.shape[0]):
        loads[place // size] += load[order[place]]
    return loads


@kernel
def _heavy_rounds_first(load: Array, order: Array, rounds: int) -> None:
    size, old = order.shape[0] // rounds, order.copy()
    ranking = np.argsort(-_by_round(load, order, rounds), kind="mergesort")  # stable
    for place in range(rounds):
        order[place * size : (place + 1) * size] = old[ranking[place] * size : (ranking[place] + 1) * size]


@kernel
def _exchange(load: Array, order: Array, rounds: int, limit: float) -> None:
    """Swap slots of a rank between its heaviest round and others until none exceeds the limit or no swap helps."""
    size = order.shape[0] // rounds
    by_round = _by_round(load, order, rounds)
    for _ in range(order.shape[0]):
        heaviest = by_round.argmax()
        if by_round[heaviest] <= limit:
            return
        least, one, other = by_round[heaviest] * (1.0 - 1e-9), -1, -1
        for place in range(heaviest * size, (heaviest + 1) * size):
            for partner in range(order.shape[0]):
                change = load[order[place]] - load[order[partner]]
                peak = max(by_round[heaviest] - change, by_round[partner // size] + change)
                if partner // size != heaviest and peak < least:
                    least, one, other = peak, place, partner
        if one < 0:
            return
        change = load[order[one]] - load[order[other]]
        by_round[heaviest] -= change
        by_round[other // size] += change
        order[one], order[other] = order[other], order[one]


@kernel
def _keep_twins(expert: Array, order: Array) -> None:
    """Copies of one expert on one rank stay in their order: rules tell copies apart by it."""
    for place in range(order.shape[0]):
        for later in range(place + 1, order.shape[0]):
            if expert[order[place]] == expert[order[later]] and order[place] > order[later]:
                order[place], order[later] = order[later], order[place]
