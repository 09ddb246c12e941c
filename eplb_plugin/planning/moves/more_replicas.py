"""Redundant slots given to experts of the busiest rank: what swaps cannot relieve, where loads have changed a lot."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array
from ..layer.solve import as_used, mend
from ..rules.base import Layer, Rule
from .balance import RELIEF_PRICE
from .ranks import count_held, received

MOST = 32  # copies given, one at a time
EXPERTS, VICTIMS = 2, 3  # heaviest of the busiest rank; redundant slots, near ones and far ones, tried for each
LEAST_RELIEF = 1e-3  # of a mean rank load
WORSE = 0.02  # by which another rank may exceed the busiest one before swaps


class Bounds(NamedTuple):
    """before: [ranks, E] what ranks held when moves began to count; budget: most moved slots; good_enough: busiest rank
    over the mean that is left alone.
    """

    before: Array
    budget: int
    good_enough: float


def give_copies(rule: Rule, made: Layer, bounds: Bounds) -> Layer:
    """`made` after one slot at a time went to an expert of the busiest rank, while that makes ranks more even."""
    for _ in range(MOST):
        if made.peak <= bounds.good_enough:
            break
        found = _tried(rule, made, bounds)
        if not found:
            break
        given = min(found, key=lambda layer: _cost(rule, layer))
        mended = mend(rule, given, bounds.before, bounds.budget, bounds.good_enough)
        if mended.peak > made.peak - LEAST_RELIEF:
            break
        made = mended
    return made


def _cost(rule: Rule, layer: Layer) -> float:
    """Copies that the tokens send to other nodes, and what the busiest rank is worth in them."""
    crossing = float(rule.arrivals(rule.to_nodes(layer.phy2log, layer.use)).sum())
    return RELIEF_PRICE * max(len(rule.tokens.rows), 1) * layer.peak + crossing


def _rank_load(rule: Rule, layer: Layer) -> Array:
    load: Array = (layer.use.shares * rule.load[layer.phy2log]).reshape(-1, rule.cluster.slots_per_rank).sum(axis=1)
    return load


def _tried(rule: Rule, made: Layer, bounds: Bounds) -> list[Layer]:
    """Layers with one more copy of an expert of the busiest rank, in a redundant slot elsewhere, which relieves it."""
    phy2log, per_rank = made.phy2log, rule.cluster.slots_per_rank
    slot_load = made.use.shares * rule.load[phy2log]
    rank_load, held = _rank_load(rule, made), count_held(phy2log, rule.cluster, len(rule.load))
    rank_of, left = np.arange(len(phy2log)) // per_rank, bounds.budget - received(held, bounds.before)
    busiest = int(np.argmax(rank_load))
    own = busiest * per_rank + np.argsort(-slot_load[busiest * per_rank : (busiest + 1) * per_rank], kind="stable")
    redundant = np.flatnonzero((held.sum(axis=0) > 1)[phy2log] & (rank_of != busiest))
    slots = redundant[np.argsort((rank_load[rank_of] - slot_load)[redundant], kind="stable")]  # lightest ranks first
    is_spared = (held > bounds.before)[rank_of[slots], phy2log[slots]]  # its rank has received that expert
    before, found = rule.to_nodes(phy2log, made.use), []
    for expert in phy2log[own[:EXPERTS]]:
        cost = (held >= bounds.before)[rank_of[slots], expert].astype(np.int64) - is_spared
        fits = slots[(held[rank_of[slots], expert] == 0) & (cost <= left)]
        is_near = rule.node_of_slot[fits] == rule.node_of_slot[own[0]]
        for slot in (*fits[is_near][:VICTIMS], *fits[~is_near][:VICTIMS]):
            tried = phy2log.copy()
            tried[slot] = expert
            layer = as_used(rule, tried, before)
            if _rank_load(rule, layer)[busiest] < rank_load[busiest] and layer.peak < made.peak + WORSE:
                found.append(layer)
    return found
