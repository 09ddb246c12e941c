"""Experts to nodes: those that tokens select together onto one node, under a bound on every node's load.

Grow the nodes by co-activation (and, for group-limited routing, by whole expert groups), then swap experts between
nodes while that lowers the number of distinct nodes the sampled tokens visit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import Array, kernel
from .sources import INGRESS_PRICE
from .visits import Visits, open_visits, swap_changes, swap_experts

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
    bond, preference = np.zeros((nodes, items)), np.zeros(items)
    scale = 1.0 / np.sqrt(np.maximum(load, 1e-9))
    heaviest = np.argsort(-load, kind="mergesort")
    for step in range(items):
        item = heaviest[(step + start * nodes) % items]
        if step >= nodes:
            item = -1
            for candidate in range(items):
                if node_of[candidate] < 0 and (item < 0 or preference[candidate] > preference[item]):
                    item = candidate
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
        for other in range(items):
            if node_of[other] >= 0:
                continue
            bond[best, other] += pairs[item, other] * scale[item]
            first, second = -np.inf, -np.inf
            for node in range(nodes):
                value = bond[node, other]
                if value > first:
                    first, second = value, first
                elif value > second:
                    second = value
            preference[other] = (first - 0.7 * second) * scale[other] if nodes > 1 else first * scale[other]
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

    fixed_load: [nodes] of what does not move; own: [nodes] tokens that visit a node for free, as they come from it.
    """

    load: float
    ingress: float
    fixed_load: Array
    own: Array


@kernel
def relief(amount_a: float, amount_b: float, change_a: float, change_b: float, bound: float) -> float:
    """Excess over `bound` that two changes take away."""
    before = max(amount_a - bound, 0.0) + max(amount_b - bound, 0.0)
    return before - max(amount_a + change_a - bound, 0.0) - max(amount_b + change_b - bound, 0.0)


@kernel
def _best_partner(
    mine: int, visits: Visits, load: Array, movable: Array, rejected: Array, node_load: Array, limits: Limits,
    offers: Array,
) -> int:  # fmt: skip
    """The expert whose swap with `mine` gains most by the tables; -1 if none gains."""
    a = visits.node_of[mine]
    bound, price, most = _bounds(visits, node_load, limits)
    best, best_gain = -1, LEAST_GAIN
    # no swap with a node gains more than the best of its experts does, and all that is in excess
    excess = np.maximum(node_load - bound, 0.0) * price
    excess += np.maximum(visits.visited - limits.own - most, 0.0) * INGRESS_PRICE
    hopeful, any_hope = np.zeros(node_load.shape[0], np.bool_), False
    for b in range(node_load.shape[0]):
        most_gain = visits.sole[mine] - visits.absent[b, mine] + offers[a, b] + excess[a] + excess[b]
        hopeful[b] = b != a and most_gain > LEAST_GAIN
        any_hope |= hopeful[b]
    if not any_hope:
        return -1
    for other in range(load.shape[0]):
        b = visits.node_of[other]
        if not hopeful[b] or not movable[other] or rejected[other]:
            continue
        change_a, change_b = swap_changes(visits, mine, other)
        gain = -float(change_a + change_b)
        if gain + excess[a] + excess[b] <= best_gain:
            continue
        in_a, in_b = visits.visited[a] - limits.own[a], visits.visited[b] - limits.own[b]
        shift = load[other] - load[mine]
        gain += price * relief(node_load[a], node_load[b], shift, -shift, bound)
        gain += INGRESS_PRICE * relief(in_a, in_b, change_a, change_b, most)
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
def _bounds(visits: Visits, node_load: Array, limits: Limits) -> tuple[float, float, float]:
    """Bound on a node's load, visits that a unit of overload is worth, bound on a node's ingress."""
    nodes, mean = node_load.shape[0], node_load.mean()
    price = OVERLOAD_PRICE * max(visits.pins.shape[0], 1) / mean if mean > 0.0 else 0.0
    arriving = (visits.visited - limits.own).sum() / nodes
    return mean * (1.0 + limits.load), price, arriving * (1.0 + limits.ingress)


@kernel
def refine_nodes(
    load: Array, node_of: Array, movable: Array, rows: Array, pins: Array, limits: Limits, sweeps: int
) -> None:
    """Swap movable experts between nodes, in place, until no swap helps or for `sweeps` looks at every expert.

    node_of: [E]; rows: [T, K] movable experts' ids only; pins: [T, nodes] all other reasons to visit (the movable
    experts' are added).
    """
    start, others = node_of.copy(), pins.copy()
    visits = open_visits(rows, pins, node_of)
    node_load = _loads(load, node_of, movable, limits)
    before = _cost(visits, node_load, limits)
    # first near, then even as well: with a price on arrivals from the start, most swaps are barred
    _sweep(load, movable, visits, node_load, Limits(limits.load, ANYWHERE, limits.fixed_load, limits.own), sweeps)
    arriving = visits.visited - limits.own
    if arriving.max() <= arriving.mean() * (1.0 + limits.ingress):
        return
    _sweep(load, movable, visits, node_load, limits, sweeps)
    if _cost(visits, node_load, limits) > before:  # what is near can be too uneven to be mended
        node_of[:], pins[:] = start, others
        visits = open_visits(rows, pins, node_of)
        _sweep(load, movable, visits, _loads(load, node_of, movable, limits), limits, sweeps)


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
    bound, price, most = _bounds(visits, node_load, limits)
    overload, excess = (
        np.maximum(node_load - bound, 0.0).sum(),
        np.maximum(visits.visited - limits.own - most, 0.0).sum(),
    )
    return float(visits.visited.sum() + price * overload + INGRESS_PRICE * excess)


@kernel
def _sweep(load: Array, movable: Array, visits: Visits, node_load: Array, limits: Limits, sweeps: int) -> None:
    """Up to `sweeps` looks at every expert, each swapped with its best partner, in place."""
    rejected, offers = np.zeros(load.shape[0], np.bool_), np.empty((node_load.shape[0], node_load.shape[0]))
    _find_offers(visits, movable, offers)
    for _ in range(sweeps):
        swapped = False
        for mine in range(load.shape[0]):
            if not movable[mine]:
                continue
            rejected[:] = False
            for _ in range(TRIES):
                other = _best_partner(mine, visits, load, movable, rejected, node_load, limits, offers)
                if other < 0:
                    break
                if _try_swap(mine, other, visits, load, node_load, limits):
                    _find_offers(visits, movable, offers)
                    swapped = True
                    break
                rejected[other] = True
        if not swapped:
            break


@kernel
def _try_swap(mine: int, other: int, visits: Visits, load: Array, node_load: Array, limits: Limits) -> bool:
    """Swap in place if that really gains."""
    a, b, shift = visits.node_of[mine], visits.node_of[other], load[other] - load[mine]
    bound, price, most = _bounds(visits, node_load, limits)
    in_a, in_b = visits.visited[a] - limits.own[a], visits.visited[b] - limits.own[b]
    gain = float(swap_experts(visits, mine, other))
    gain += price * relief(node_load[a], node_load[b], shift, -shift, bound)
    change_a, change_b = visits.visited[a] - limits.own[a] - in_a, visits.visited[b] - limits.own[b] - in_b
    gain += INGRESS_PRICE * relief(in_a, in_b, change_a, change_b, most)
    if gain <= LEAST_GAIN:
        swap_experts(visits, mine, other)
        return False
    node_load[a] += shift
    node_load[b] -= shift
    return True
