"""Order the slots inside a rank so that every round of per-expert overlap has an even load.

Round r works on the r-th slice of every rank's slots, and all wait for the slowest, so that a layer costs the sum over
rounds of the busiest rank's load. It is least if no rank's round exceeds a round's share of the busiest rank. Which
rank serves a token does not change: only slots of one rank change places, which is a copy inside its memory.
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
TOLERANCE = 0.03  # share above which a round is worth the copies; forecasts of loads are not better than that


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


def round_peak(plan: Plan, load: ArrayLike, num_rounds: int) -> NDArray[np.float64]:
    """load: [L, E] -> [L] what a layer costs in rounds, relative to the busiest rank's load; 1.0 is the least."""
    per_slot = _slot_load(plan, load)
    by_round = per_slot.reshape(len(per_slot), plan.topology.num_ranks, num_rounds, -1).sum(axis=3)
    busiest = by_round.sum(axis=2).max(axis=1)
    return np.where(busiest > 0.0, by_round.max(axis=1).sum(axis=1) / np.where(busiest > 0.0, busiest, 1.0), 1.0)


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
        order[layer] = np.arange(total)
        busiest = 0.0
        for first in range(0, total, slots):
            busiest = max(busiest, slot_load[layer, first : first + slots].sum())
        limit = busiest / rounds * (1.0 + tolerance)
        for first in range(0, total, slots):
            _exchange(slot_load[layer], order[layer, first : first + slots], rounds, limit)
            _keep_twins(phy2log[layer], order[layer, first : first + slots])
    return order


@kernel
def _exchange(load: Array, order: Array, rounds: int, limit: float) -> None:
    """Swap slots of a rank between its heaviest round and others until none exceeds the limit or no swap helps."""
    size = order.shape[0] // rounds
    by_round = np.zeros(rounds)
    for place in range(order.shape[0]):
        by_round[place // size] += load[order[place]]
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
