"""Which share of every source's tokens each copy serves: cheapest first, then as little rerouting as makes bins even.

A min-cost flow, solved by successive cheapest paths (Busacker and Gowen 1960; Bellman and Ford for the paths, since
undoing an assignment has a negative price). A bin is what a copy loads: a rank, or a node while ranks are open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel

# Overload allowed at first, or more where there is more; lowered in steps: what no path relieves ends near min-max.
FIRST_CAP = 0.5
CAP_STEP = 0.75
LEAST_CAP = 0.0118  # the last step is to none
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
    listed, filled = np.empty(expert.shape[0], np.int64), start[:-1].copy()
    for copy in range(expert.shape[0]):
        listed[filled[expert[copy]]] = copy
        filled[expert[copy]] += 1
    return Copies(expert, bin_of, start, listed)


@kernel
def _start_cheapest(load: Array, cost: Array, copies: Copies, share: Array, bin_load: Array) -> None:
    sources = cost.shape[1]
    for source in range(sources):
        for expert in range(load.shape[0]):
            best, lowest = -1, NEVER
            for copy in copies.listed[copies.start[expert] : copies.start[expert + 1]]:
                price = cost[copy, source] + TIE * ((copy * 13 + source * 7) % 17)
                if price < lowest:
                    best, lowest = copy, price
            share[best, source] = 1.0
            bin_load[copies.bin[best]] += load[expert] / sources


class Arcs(NamedTuple):
    """price: [bins, bins] least cost per unit of load to reroute from one bin to another; via: [bins, bins, 3] how:
    (source, from copy, to copy); those from bin b lead to ahead[b, : degree[b]].
    """

    price: Array
    via: Array
    ahead: Array
    degree: Array


@kernel
def _price_arcs(origin_bin: int, on_bin: Array, cost: Array, copies: Copies, share: Array, arcs: Arcs) -> None:
    """Renew the arcs from one bin. on_bin: its copies that are not their expert's only one."""
    price, via = arcs.price[origin_bin], arcs.via[origin_bin]
    price[:] = NEVER
    degree = 0
    for origin in on_bin:
        expert = copies.expert[origin]
        for target in copies.listed[copies.start[expert] : copies.start[expert + 1]]:
            target_bin = copies.bin[target]
            if target_bin == origin_bin:
                continue
            for source in range(cost.shape[1]):
                extra = cost[target, source] - cost[origin, source]
                if share[origin, source] > 0.0 and extra < price[target_bin]:
                    if price[target_bin] == NEVER:
                        arcs.ahead[origin_bin, degree] = target_bin
                        degree += 1
                    price[target_bin] = extra
                    via[target_bin, 0], via[target_bin, 1], via[target_bin, 2] = source, origin, target
    arcs.degree[origin_bin] = degree


@kernel
def _cheapest_paths(arcs: Arcs, origin: int, distance: Array, before: Array, queue: Array, queued: Array) -> None:
    """Bellman and Ford, with a queue of the bins that were reached more cheaply; queue, queued: [bins], to work in."""
    bins = distance.shape[0]
    distance[:] = NEVER
    before[:] = -1
    queued[:] = False
    distance[origin], queue[0], head, waiting = 0.0, origin, 0, 1
    for _ in range(bins * bins):
        if waiting == 0:
            break
        a = queue[head]
        head, waiting, queued[a] = (head + 1) % bins, waiting - 1, False
        for b in arcs.ahead[a, : arcs.degree[a]]:
            if b != origin and distance[a] + arcs.price[a, b] < distance[b] - 1e-12:
                distance[b], before[b] = distance[a] + arcs.price[a, b], a
                if not queued[b]:
                    queue[(head + waiting) % bins] = b
                    waiting, queued[b] = waiting + 1, True


@kernel
def _reroute(load: Array, copies: Copies, share: Array, via: Array, before: Array, target: int, wanted: float) -> float:
    """Send up to `wanted` load along the path that `before` has to `target`; returns what was sent, 0 if there is none.

    before: [bins] the bin before each on its path; -1 where paths begin.
    """
    sources, amount, at = share.shape[1], wanted, target
    for _ in range(before.shape[0]):
        if before[at] < 0:
            break
        source, copy = via[before[at], at, 0], via[before[at], at, 1]
        amount = min(amount, share[copy, source] * load[copies.expert[copy]] / sources)
        at = before[at]
    if before[at] >= 0 or amount <= 0.0:
        return 0.0
    at = target
    while before[at] >= 0:
        source, copy, other = via[before[at], at, 0], via[before[at], at, 1], via[before[at], at, 2]
        part = amount * sources / load[copies.expert[copy]]
        share[copy, source] -= part
        share[other, source] += part
        if share[copy, source] < 1e-9:
            share[copy, source] = 0.0
        at = before[at]
    return amount


@kernel
def split_flow(load: Array, cost: Array, copies: Copies, bins: int) -> Array:
    """load: [E] > 0; cost: [sources, C] of one unit of load -> share [sources, C]; an expert's copies sum to 1.

    Sources send equally much. No bin exceeds the mean as far as the copies allow it.
    """
    # every token takes its cheapest copy
    cost = np.ascontiguousarray(cost.T)
    share, bin_load = np.zeros(cost.shape), np.zeros(bins)  # [C, sources], as cost is now
    _start_cheapest(load, cost, copies, share, bin_load)
    replicated = np.flatnonzero((copies.start[1:] - copies.start[:-1])[copies.expert] > 1)
    if replicated.shape[0] == 0:
        return np.ascontiguousarray(share.T)
    # what rerouting from bin to bin costs
    mean = bin_load.sum() / bins
    on_bins = list_by_expert(copies.bin[replicated], replicated, bins)
    arcs = Arcs(
        np.empty((bins, bins)),
        np.zeros((bins, bins, 3), np.int64),
        np.empty((bins, bins), np.int64),
        np.zeros(bins, np.int64),
    )
    for origin in range(bins):
        on_bin = replicated[on_bins.listed[on_bins.start[origin] : on_bins.start[origin + 1]]]
        _price_arcs(origin, on_bin, cost, copies, share, arcs)
    distance, before, blocked = np.empty(bins), np.empty(bins, np.int64), np.zeros(bins, np.bool_)
    queue, queued = np.empty(bins, np.int64), np.empty(bins, np.bool_)
    # the fullest bin sends along the cheapest path to a bin with room, under a cap that comes down in steps
    over = max(FIRST_CAP, bin_load.max() / mean - 1.0)  # as far as bins go at all: heavy copies level out as well
    cap = mean * (1.0 + over)
    for _ in range(MAX_PATHS):
        origin = -1
        for candidate in range(bins):
            if blocked[candidate] or bin_load[candidate] <= cap * (1.0 + 1e-6):
                continue
            if origin < 0 or bin_load[candidate] > bin_load[origin]:
                origin = candidate
        if origin < 0:
            if over == 0.0:
                break
            over = over * CAP_STEP if over * CAP_STEP > LEAST_CAP else 0.0
            cap = mean * (1.0 + over)
            blocked[:] = False
            continue
        _cheapest_paths(arcs, origin, distance, before, queue, queued)
        target = -1
        for candidate in range(bins):
            if candidate == origin or bin_load[candidate] >= cap * (1.0 - 1e-6) or distance[candidate] == NEVER:
                continue
            if target < 0 or distance[candidate] < distance[target]:
                target = candidate
        sent = 0.0
        if target >= 0:
            wanted = min(bin_load[origin] - cap, cap - bin_load[target])
            sent = _reroute(load, copies, share, arcs.via, before, target, wanted)
        if sent <= 0.0:
            blocked[origin] = True
            continue
        # loads and arcs of the bins on the path, renewed
        bin_load[origin] -= sent
        bin_load[target] += sent
        at = target
        while True:
            _price_arcs(
                at, replicated[on_bins.listed[on_bins.start[at] : on_bins.start[at + 1]]], cost, copies, share, arcs
            )
            if at == origin:
                break
            at = before[at]
    return np.ascontiguousarray(share.T)
