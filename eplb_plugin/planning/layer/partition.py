"""Experts to nodes: those that tokens select together onto one node, under a bound on every node's load.

Grow the nodes by co-activation (and, for group-limited routing, by whole expert groups), then swap experts between
nodes while that lowers the number of distinct nodes the sampled tokens visit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..traffic.node_visits import (
    Visits,
    most_arrivals,
    open_visits,
    real_changes,
    relief,
    swap_changes,
    swap_experts,
    worth_of,
)
from ..traffic.weighted import INGRESS_PRICE

TRIES = 4  # candidates per expert and sweep; a gain from the tables is wrong where a token has both experts
LEAST_GAIN = 1e-9
NEVER = 1e300
ANYWHERE = 1e9  # tolerance of ingress that no node exceeds
OVERLOAD_PRICE = 4.0  # visits per token that a node overload of one mean node load is worth


@kernel
def grow_nodes(load: Array, pairs: Array, nodes: int, tolerance: float, start: int = 0) -> Array:
    """[items] int32 node of every item: next the item with the clearest preference, to the node it belongs to.

    Nodes get equally many items, or one more where these do not divide, and no more than their share of the load while
    another has room.
    """
    items = load.shape[0]
    capacity, larger = items // nodes, items % nodes  # `larger` nodes may get one more
    bound = load.sum() / nodes * (1.0 + tolerance)
    node_of, filled, node_load = np.full(items, -1, np.int32), np.zeros(nodes, np.int64), np.zeros(nodes)
    # of every item its bond with every node, the node of the strongest, and the strongest elsewhere
    bond, closest, second = np.zeros((nodes, items)), np.zeros(items, np.int64), np.zeros(items)
    scale = 1.0 / np.sqrt(np.maximum(load, 1e-9))
    heaviest, left = np.argsort(-load, kind="mergesort"), np.arange(items)
    clearest = -1
    for step in range(items):
        item = heaviest[(step + start * nodes) % items] if step < nodes else clearest
        # the node with room that it belongs to: the first ones go round, then bonds decide, weakened by the load
        best, best_value = -1, -np.inf
        for node in range(nodes):
            if filled[node] >= capacity + (larger > 0):
                continue
            value = bond[node, item] * (1.0 - 0.5 * node_load[node] / bound) if bound > 0.0 else 0.0
            if step < nodes:
                value = -float(filled[node])
            elif node_load[node] + load[item] > bound:
                value = -1e12 * (1.0 + node_load[node])
            if value > best_value:
                best, best_value = node, value
        node_of[item] = best
        larger -= filled[best] == capacity
        filled[best] += 1
        node_load[best] += load[item]
        # bonds of those that wait, and who of them prefers one node most clearly
        waiting, clearest, most = 0, -1, -np.inf
        for place in range(items - step):
            other = left[place]
            if other == item:
                continue
            left[waiting] = other
            waiting += 1
            bond[best, other] += pairs[item, other] * scale[item]
            first, grown = bond[closest[other], other], bond[best, other]  # bonds only grow
            if closest[other] != best and grown > first:
                second[other], closest[other], first = first, best, grown
            elif closest[other] != best and grown > second[other]:
                second[other] = grown
            preference = (first - 0.7 * second[other] if nodes > 1 else first) * scale[other]
            if preference > most:
                clearest, most = other, preference
    return node_of


@kernel
def grow_groups(load: Array, pairs: Array, nodes: int, groups: int, tolerance: float) -> Array:
    """[E] int32 node of every expert, whole groups together (or whole parts of a group where there are more nodes)."""
    experts = load.shape[0]
    if groups % nodes:
        return (np.arange(experts) * nodes // experts).astype(np.int32)
    size = experts // groups
    group_load, group_pairs = np.zeros(groups), np.zeros((groups, groups))
    for expert in range(experts):
        group_load[expert // size] += load[expert]
        for other in range(experts):
            group_pairs[expert // size, other // size] += pairs[expert, other]
    node_of_group = grow_nodes(group_load, group_pairs, nodes, tolerance)
    return node_of_group[np.arange(experts) // size]


class Limits(NamedTuple):
    """What keeps nodes even. load, ingress: shares by which a node may exceed the mean before that has a price.

    fixed_load: [nodes] of what does not move.
    """

    load: float
    ingress: float
    fixed_load: Array


class Nodes(NamedTuple):
    """load: [E]; node_load: [nodes], kept up to date; movable: [E]."""

    load: Array
    node_load: Array
    movable: Array


class Needs(NamedTuple):
    """What tokens visit nodes for, when a search begins.

    rows: [T, K] movable experts' ids only
    pins: [T, nodes] all other reasons to visit; the movable experts' are added, in place
    own: [nodes] tokens that visit a node for free, as they come from it
    """

    rows: Array
    pins: Array
    own: Array


@kernel
def _best_partner(
    mine: int, visits: Visits, nodes: Nodes, barred: Array, limits: Limits, offers: Array, reach: Array
) -> int:
    """The expert whose swap with `mine` gains most by the tables; -1 if none gains. reach: [nodes] to work in."""
    load, node_load = nodes.load, nodes.node_load
    node_of, sole, absent = visits.node_of, visits.sole, visits.absent
    a, hopeful = node_of[mine], False
    bound, price = _bounds(visits, node_load, limits)
    most = most_arrivals(visits, limits.ingress)
    for b in range(node_load.shape[0]):  # what a swap with an expert there gains, but for that expert's part
        excess = INGRESS_PRICE * max(visits.visited[b] - visits.own[b] - most, 0.0)
        reach[b] = price * max(node_load[b] - bound, 0.0) + excess
    excess = reach[a]
    for b in range(node_load.shape[0]):
        reach[b] += excess + sole[mine] - absent[b, mine]
        if b == a or reach[b] + offers[a, b] <= LEAST_GAIN:
            reach[b] = -NEVER
        hopeful |= reach[b] > -NEVER
    best, best_gain = -1, LEAST_GAIN
    for other in range(load.shape[0] if hopeful else 0):
        b = node_of[other]
        if barred[other] or reach[b] + (sole[other] - absent[a, other]) <= best_gain:
            continue
        change_a, change_b = swap_changes(visits, mine, other)
        shift = load[other] - load[mine]
        gain = worth_of(visits, a, b, change_a, change_b, most)
        gain += price * relief(node_load[a], node_load[b], shift, -shift, bound)
        if gain > best_gain:
            best, best_gain = other, gain
    return best


@kernel
def _find_offers(visits: Visits, movable: Array, offers: Array) -> None:
    """offers: [nodes a, nodes b] visits that a swap from a with an expert of b saves at most for that expert's sake."""
    offers[:] = -NEVER
    for expert in range(movable.shape[0]):
        b = visits.node_of[expert]
        if movable[expert]:
            for a in range(offers.shape[0]):
                offers[a, b] = max(offers[a, b], visits.sole[expert] - visits.absent[a, expert])


@kernel
def _bounds(visits: Visits, node_load: Array, limits: Limits) -> tuple[float, float]:
    """Bound on a node's load, visits that a unit of overload is worth."""
    total = 0.0
    for node in range(node_load.shape[0]):
        total += node_load[node]
    mean = total / node_load.shape[0]
    return mean * (1.0 + limits.load), OVERLOAD_PRICE * max(visits.pins.shape[0], 1) / mean if mean > 0.0 else 0.0


@kernel
def refine_nodes(load: Array, node_of: Array, movable: Array, needs: Needs, limits: Limits, sweeps: int) -> None:
    """Swap movable experts between nodes, in place, until no swap helps or for `sweeps` looks at every expert.

    load, node_of, movable: [E].
    """
    rows, pins, own = needs
    start, others = node_of.copy(), pins.copy()
    visits = open_visits(rows, pins, node_of, own)
    nodes = Nodes(load, _loads(load, node_of, movable, limits), movable)
    before = _cost(visits, nodes.node_load, limits)
    # first near, then even as well: with a price on arrivals from the start, most swaps are barred
    _sweep(nodes, visits, Limits(limits.load, ANYWHERE, limits.fixed_load), sweeps)
    if (visits.visited - own).max() <= most_arrivals(visits, limits.ingress):
        return
    _sweep(nodes, visits, limits, sweeps)
    if _cost(visits, nodes.node_load, limits) > before:  # what is near can be too uneven to be mended
        node_of[:], pins[:] = start, others
        visits = open_visits(rows, pins, node_of, own)
        _sweep(Nodes(load, _loads(load, node_of, movable, limits), movable), visits, limits, sweeps)


@kernel
def _loads(load: Array, node_of: Array, movable: Array, limits: Limits) -> Array:
    """[nodes] load of what moves and what does not."""
    node_load = limits.fixed_load.copy()
    for expert in range(load.shape[0]):
        if movable[expert]:
            node_load[node_of[expert]] += load[expert]
    return node_load


@kernel
def _cost(visits: Visits, node_load: Array, limits: Limits) -> float:
    """Visits, and what is above the limits at its price."""
    bound, price = _bounds(visits, node_load, limits)
    excess = np.maximum(visits.visited - visits.own - most_arrivals(visits, limits.ingress), 0.0).sum()
    overload = np.maximum(node_load - bound, 0.0).sum()
    return float(visits.visited.sum() + price * overload + INGRESS_PRICE * excess)


@kernel
def _sweep(nodes: Nodes, visits: Visits, limits: Limits, sweeps: int) -> None:
    """Up to `sweeps` looks at every expert, each swapped with its best partner, in place."""
    movable, count, barred = nodes.movable, nodes.node_load.shape[0], ~nodes.movable
    offers, reach, tried = np.empty((count, count)), np.empty(count), np.empty(TRIES, np.int64)
    _find_offers(visits, movable, offers)
    for _ in range(sweeps):
        swapped = False
        for mine in range(movable.shape[0]):
            if not movable[mine]:
                continue
            tries = 0
            while tries < TRIES:
                other = _best_partner(mine, visits, nodes, barred, limits, offers, reach)
                if other < 0:
                    break
                if _try_swap(mine, other, visits, nodes, limits):
                    _find_offers(visits, movable, offers)
                    swapped = True
                    break
                barred[other], tried[tries] = True, other
                tries += 1
            for other in tried[:tries]:
                barred[other] = False
        if not swapped:
            break


@kernel
def _try_swap(mine: int, other: int, visits: Visits, nodes: Nodes, limits: Limits) -> bool:
    """Swap in place if that really gains."""
    load, node_load = nodes.load, nodes.node_load
    a, b, shift = visits.node_of[mine], visits.node_of[other], load[other] - load[mine]
    bound, price = _bounds(visits, node_load, limits)
    change_a, change_b = real_changes(visits, mine, other)
    gain = worth_of(visits, a, b, change_a, change_b, most_arrivals(visits, limits.ingress))
    if gain + price * relief(node_load[a], node_load[b], shift, -shift, bound) <= LEAST_GAIN:
        return False
    swap_experts(visits, mine, other)
    node_load[a] += shift
    node_load[b] -= shift
    return True
