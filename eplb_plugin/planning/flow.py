"""Which share of every source's tokens each copy serves: cheapest first, then as little rerouting as makes bins even.

A min-cost flow, solved by successive cheapest paths (Busacker and Gowen 1960; Bellman and Ford for the paths, since
undoing an assignment has a negative price). A bin is what a copy loads: a rank, or a node while ranks are open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import Array, kernel

FIRST_CAP = 0.5  # overload allowed at first; lowered in steps, so that what no path can relieve ends near min-max
CAP_STEP = 0.75
CAP_STEPS = 14
MAX_PATHS = 4000
TIE = 1e-7
NEVER = 1e300


class Copies(NamedTuple):
    """expert, bin: [C] of every copy; the copies of expert e: listed[start[e] : start[e + 1]]."""

    expert: Array
    bin: Array
    start: Array
    listed: Array


@kernel
def list_by_expert(expert: Array, bin_of: Array, experts: int) -> Copies:
    start = np.zeros(experts + 1, np.int64)
    for copy in range(expert.shape[0]):
        start[expert[copy] + 1] += 1
    start = np.cumsum(start)
    return Copies(expert, bin_of, start, np.argsort(expert, kind="mergesort"))


@kernel
def _start_cheapest(load: Array, cost: Array, copies: Copies, share: Array, bin_load: Array) -> None:
    sources = cost.shape[0]
    for source in range(sources):
        for expert in range(load.shape[0]):
            best, lowest = -1, NEVER
            for copy in copies.listed[copies.start[expert] : copies.start[expert + 1]]:
                price = cost[source, copy] + TIE * ((copy * 13 + source * 7) % 17)
                if price < lowest:
                    best, lowest = copy, price
            share[source, best] = 1.0
            bin_load[copies.bin[best]] += load[expert] / sources


@kernel
def _price_arcs(replicated: Array, cost: Array, copies: Copies, share: Array, price: Array, via: Array) -> None:
    """price: [bins, bins] least cost per unit of load to reroute from one bin to another; via: (source, from, to)."""
    price[:] = NEVER
    for expert in replicated:
        members = copies.listed[copies.start[expert] : copies.start[expert + 1]]
        for source in range(cost.shape[0]):
            for origin in members:
                if share[source, origin] <= 0.0:
                    continue
                for target in members:
                    a, b = copies.bin[origin], copies.bin[target]
                    extra = cost[source, target] - cost[source, origin]
                    if a != b and extra < price[a, b]:
                        price[a, b] = extra
                        via[a, b, 0], via[a, b, 1], via[a, b, 2] = source, origin, target


@kernel
def _cheapest_paths(price: Array, origin: int, distance: Array, before: Array) -> None:
    distance[:] = NEVER
    before[:] = -1
    distance[origin] = 0.0
    for _ in range(price.shape[0]):
        changed = False
        for a in range(price.shape[0]):
            if distance[a] == NEVER:
                continue
            for b in range(price.shape[0]):
                if b != origin and price[a, b] < NEVER and distance[a] + price[a, b] < distance[b] - 1e-12:
                    distance[b], before[b] = distance[a] + price[a, b], a
                    changed = True
        if not changed:
            break


@kernel
def _reroute(
    load: Array, copies: Copies, share: Array, via: Array, before: Array, origin: int, target: int, wanted: float
) -> float:
    """Send up to `wanted` load along the path from `origin` to `target`; returns what was sent, 0 if there is none."""
    sources, amount, at = share.shape[0], wanted, target
    for _ in range(before.shape[0]):
        if at == origin:
            break
        source, copy = via[before[at], at, 0], via[before[at], at, 1]
        amount = min(amount, share[source, copy] * load[copies.expert[copy]] / sources)
        at = before[at]
    if at != origin or amount <= 0.0:
        return 0.0
    at = target
    while at != origin:
        source, copy, other = via[before[at], at, 0], via[before[at], at, 1], via[before[at], at, 2]
        part = amount * sources / load[copies.expert[copy]]
        share[source, copy] -= part
        share[source, other] += part
        if share[source, copy] < 1e-9:
            share[source, copy] = 0.0
        at = before[at]
    return amount


@kernel
def split_flow(load: Array, cost: Array, copies: Copies, bins: int) -> Array:
    """load: [E] > 0; cost: [sources, C] of one unit of load -> share [sources, C]; an expert's copies sum to 1.

    Sources send equally much. No bin exceeds the mean as far as the copies allow it.
    """
    share, bin_load = np.zeros(cost.shape), np.zeros(bins)
    _start_cheapest(load, cost, copies, share, bin_load)
    replicated = np.flatnonzero(copies.start[1:] - copies.start[:-1] > 1)
    if replicated.shape[0] == 0:
        return share
    mean = bin_load.sum() / bins
    price, via = np.empty((bins, bins)), np.zeros((bins, bins, 3), np.int64)
    distance, before, blocked = np.empty(bins), np.empty(bins, np.int64), np.zeros(bins, np.bool_)
    step, cap = 0, mean * (1.0 + FIRST_CAP)
    for _ in range(MAX_PATHS):
        origin = -1
        for candidate in range(bins):
            if blocked[candidate] or bin_load[candidate] <= cap * (1.0 + 1e-6):
                continue
            if origin < 0 or bin_load[candidate] > bin_load[origin]:
                origin = candidate
        if origin < 0:
            if step == CAP_STEPS:
                break
            step += 1
            cap = mean * (1.0 + (FIRST_CAP * CAP_STEP**step if step < CAP_STEPS else 0.0))
            blocked[:] = False
            continue
        _price_arcs(replicated, cost, copies, share, price, via)
        _cheapest_paths(price, origin, distance, before)
        target = -1
        for candidate in range(bins):
            if candidate == origin or bin_load[candidate] >= cap * (1.0 - 1e-6) or distance[candidate] == NEVER:
                continue
            if target < 0 or distance[candidate] < distance[target]:
                target = candidate
        sent = 0.0
        if target >= 0:
            wanted = min(bin_load[origin] - cap, cap - bin_load[target])
            sent = _reroute(load, copies, share, via, before, origin, target, wanted)
        if sent <= 0.0:
            blocked[origin] = True
            continue
        bin_load[origin] -= sent
        bin_load[target] += sent
    return share
