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


class Arcs(NamedTuple):
    """Ways to reroute load between copies of one expert, listed expert by expert.

    origin, target: [A] copies; those of the i-th replicated expert: first[i] … first[i + 1]; nth: [E] that i.
    price: [A] least extra cost per unit of load over the sources that use the origin; source: [A] which one that is.
    """

    origin: Array
    target: Array
    first: Array
    nth: Array
    price: Array
    source: Array


@kernel
def _list_arcs(copies: Copies) -> Arcs:
    experts = copies.start.shape[0] - 1
    first, index, total = np.zeros(experts + 1, np.int64), np.zeros(experts, np.int64), 0
    replicated = 0
    for expert in range(experts):
        count = copies.start[expert + 1] - copies.start[expert]
        if count > 1:
            index[expert] = replicated
            replicated += 1
            total += count * (count - 1)
            first[replicated] = total
    origin, target, filled = np.empty(total, np.int64), np.empty(total, np.int64), 0
    for expert in range(experts):
        members = copies.listed[copies.start[expert] : copies.start[expert + 1]]
        for copy in members:
            for other in members:
                if other != copy:
                    origin[filled], target[filled] = copy, other
                    filled += 1
    return Arcs(origin, target, first[: replicated + 1], index, np.empty(total), np.zeros(total, np.int64))


@kernel
def _price_arcs(arcs: Arcs, begin: int, end: int, cost: Array, copies: Copies, share: Array) -> None:
    """Price the arcs `begin` … `end` again: NEVER where no source uses the origin, or both copies are in one bin."""
    for arc in range(begin, end):
        origin, target = arcs.origin[arc], arcs.target[arc]
        arcs.price[arc] = NEVER
        if copies.bin[origin] == copies.bin[target]:
            continue
        for source in range(cost.shape[0]):
            extra = cost[source, target] - cost[source, origin]
            if share[source, origin] > 0.0 and extra < arcs.price[arc]:
                arcs.price[arc], arcs.source[arc] = extra, source


@kernel
def _cheapest_paths(arcs: Arcs, bin_of: Array, origin: int, distance: Array, before: Array) -> None:
    """distance: [bins] from `origin`; before: [bins] the arc by which a bin is reached, -1 = not at all."""
    distance[:] = NEVER
    before[:] = -1
    distance[origin] = 0.0
    for _ in range(distance.shape[0]):
        changed = False
        for arc in range(arcs.price.shape[0]):
            if arcs.price[arc] == NEVER:
                continue
            a, b = bin_of[arcs.origin[arc]], bin_of[arcs.target[arc]]
            if b != origin and distance[a] < NEVER and distance[a] + arcs.price[arc] < distance[b] - 1e-12:
                distance[b], before[b] = distance[a] + arcs.price[arc], arc
                changed = True
        if not changed:
            break


@kernel
def _reroute(
    load: Array, cost: Array, copies: Copies, arcs: Arcs, share: Array, before: Array, origin: int, target: int,
    wanted: float,
) -> float:  # fmt: skip
    """Send up to `wanted` load along the path from `origin` to `target`; returns what was sent, 0 if there is none."""
    sources, amount, at = share.shape[0], wanted, target
    for _ in range(before.shape[0]):
        if at == origin:
            break
        copy = arcs.origin[before[at]]
        amount = min(amount, share[arcs.source[before[at]], copy] * load[copies.expert[copy]] / sources)
        at = copies.bin[copy]
    if at != origin or amount <= 0.0:
        return 0.0
    at = target
    while at != origin:
        arc = before[at]
        source, copy, expert = arcs.source[arc], arcs.origin[arc], copies.expert[arcs.origin[arc]]
        part = amount * sources / load[expert]
        share[source, copy] -= part
        share[source, arcs.target[arc]] += part
        if share[source, copy] < 1e-9:
            share[source, copy] = 0.0
        at = copies.bin[copy]
    at = target
    while at != origin:  # only now: prices and sources of the path were needed until here
        copy = arcs.origin[before[at]]
        nth = arcs.nth[copies.expert[copy]]
        _price_arcs(arcs, arcs.first[nth], arcs.first[nth + 1], cost, copies, share)
        at = copies.bin[copy]
    return amount


@kernel
def split_flow(load: Array, cost: Array, copies: Copies, bins: int) -> Array:
    """load: [E] > 0; cost: [sources, C] of one unit of load -> share [sources, C]; an expert's copies sum to 1.

    Sources send equally much. No bin exceeds the mean as far as the copies allow it.
    """
    share, bin_load = np.zeros(cost.shape), np.zeros(bins)
    _start_cheapest(load, cost, copies, share, bin_load)
    _level_bins(load, cost, copies, share, bin_load)
    return share


@kernel
def _level_bins(load: Array, cost: Array, copies: Copies, share: Array, bin_load: Array) -> None:
    """Reroute, in place, from bins above the mean to bins below it, always along the cheapest path."""
    bins, arcs = bin_load.shape[0], _list_arcs(copies)
    if arcs.origin.shape[0] == 0:
        return
    _price_arcs(arcs, 0, arcs.origin.shape[0], cost, copies, share)
    mean = bin_load.sum() / bins
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
        _cheapest_paths(arcs, copies.bin, origin, distance, before)
        target = -1
        for candidate in range(bins):
            if candidate == origin or bin_load[candidate] >= cap * (1.0 - 1e-6) or distance[candidate] == NEVER:
                continue
            if target < 0 or distance[candidate] < distance[target]:
                target = candidate
        sent = 0.0
        if target >= 0:
            wanted = min(bin_load[origin] - cap, cap - bin_load[target])
            sent = _reroute(load, cost, copies, arcs, share, before, origin, target, wanted)
        if sent <= 0.0:
            blocked[origin] = True
            continue
        bin_load[origin] -= sent
        bin_load[target] += sent
