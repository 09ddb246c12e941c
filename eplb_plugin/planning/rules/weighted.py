"""Placement and per-source weights together, for the rule `weighted`.

Placement decides what weights can do, and weights decide what a placement costs; so they are solved in turns: experts
to nodes around what the replicas serve, replicas where they save most under the current weights, weights by a flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...dispatch.tables import TABLE_WIDTH, share_entries
from ...jit import Array, kernel
from ..replicas.counts import best_copy, copy_limit
from ..replicas.exchange import best_exchange
from ..sample import Tokens, thinned
from ..traffic.weighted import arrival_cost, arrival_prices, count_arrivals, node_rows, source_pins, visit_cost
from .base import Rule, Use, node_shares
from .min_cost_flow import list_by_expert, split_flow

EXCHANGES = 8  # tried together at first


@dataclass(frozen=True)
class WeightedRule(Rule):
    """A node use is [sources, E, nodes]: the share of an expert's tokens that every source sends to a node."""

    def settle(self, copies: Array, use: Array) -> Array:
        """copies: [E, nodes] -> [sources, E, nodes] shares by the flow, nodes costing what `use` implies."""
        return flow_to_nodes(self.load, self._cost(use, wanted=copies.sum(axis=1) > 1), copies)

    def shares(self, use: Array) -> Array:
        return use.mean(axis=0)

    def add_replicas(self, copies: Array, free: Array, mean_rank: float) -> Array:
        """Fill every free slot, in place; copies: [E, nodes]; free: [nodes] -> shares [sources, E, nodes]."""
        nodes = len(free)
        use = np.repeat((copies > 0)[None].astype(np.float64), nodes, axis=0)
        for turn in range(self.search.rounds):  # every copy changes what the next would save
            cost = self._cost(use)
            saved = saved_by_copies(self.load, cost, use) / max(self.load.sum(), 1e-9) * selections(self.tokens)
            node_load = np.einsum("sen,e->n", use, self.load) / nodes
            place_round(
                saved, self.load, copies, free, -(-int(free.sum()) // (self.search.rounds - turn)), mean_rank, node_load
            )
            use = flow_to_nodes(self.load, cost, copies)
        return self._exchanged(copies, use, mean_rank) if self.search.exchanges > 0 else use

    def _exchanged(self, copies: Array, use: Array, mean_rank: float) -> Array:
        """Let experts change places with redundant copies, in place, a few at once, while fewer tokens cross."""
        arriving, at_once, barred = self.arrivals(use), EXCHANGES, np.zeros(copies.shape, np.bool_)
        lowest, cost = arrival_cost(arriving, self.ingress_tolerance), self._cost(use, arriving)
        for _ in range(self.search.exchanges):
            tried = copies.copy()
            saved, lost = saved_by_copies(self.load, cost, use), lost_copies(self.load, cost, use, copies)
            changed = exchange_some(saved, lost, self.load, tried, barred, mean_rank, at_once)
            if changed == 0:
                break
            again = flow_to_nodes(self.load, cost, tried)
            arriving = self.arrivals(again)
            now = arrival_cost(arriving, self.ingress_tolerance)
            if now < lowest:
                lowest, use, cost = now, again, self._cost(again, arriving)
                copies[:] = tried
            elif changed == 1:
                barred |= tried > copies
            else:
                at_once = max(changed // 2, 1)
        return use

    def pins(self, use: Array, movable: Array) -> tuple[Array, Array]:
        return source_pins(self.tokens, node_rows(use), movable, self.cluster.node_of_rank, self.cluster.num_nodes)

    def use_of(self, phy2log: Array, before: Array | None = None) -> Use:
        """Weights for a placement; before: [sources, E, nodes] weights to price nodes by, default the nearest copy."""
        experts, nodes, ranks = len(self.load), self.cluster.num_nodes, len(self.cluster.node_of_rank)
        copies = node_shares(phy2log, self.node_of_slot, np.ones(len(phy2log)), experts, nodes)
        if before is None:
            even = np.repeat((copies / copies.sum(axis=1, keepdims=True))[None], nodes, axis=0)
            before = self.settle(copies, self.settle(copies, even))
        cost = visit_cost(self.tokens, node_rows(before), nodes, copies.sum(axis=1) > 1)
        by_slot = np.ascontiguousarray(cost[:, phy2log, self.node_of_slot])
        rank_of_slot = np.arange(len(phy2log)) // self.cluster.slots_per_rank
        listed = list_by_expert(phy2log.astype(np.int64), rank_of_slot, experts)
        exact = split_flow(self.load, by_slot, listed, ranks)
        shares = round_to_entries(exact, listed.start, listed.listed, ranks // nodes)
        return Use(shares.mean(axis=0), shares, np.empty(0, np.int32))

    def to_nodes(self, phy2log: Array, use: Use) -> Array:
        """[sources, E, nodes] what `use` means per node."""
        return node_shares(phy2log, self.node_of_slot, use.source_shares, len(self.load), self.cluster.num_nodes)

    def _cost(self, use: Array, arriving: Array | None = None, wanted: Array | None = None) -> Array:
        """[sources, E, nodes] of a selection sent to a node, dearer where much arrives; of all experts, or of those
        wanted: [E].
        """
        arriving = self.arrivals(use) if arriving is None else arriving
        wanted = np.ones(len(self.load), np.bool_) if wanted is None else wanted
        return visit_cost(self._guides, node_rows(use), self.cluster.num_nodes, wanted) * arrival_prices(arriving)

    @cached_property
    def _guides(self) -> Tokens:
        return thinned(self.tokens, self.search.guides)

    def arrivals(self, use: Array) -> Array:
        return count_arrivals(self.tokens, node_rows(use), self.cluster.node_of_rank, self.cluster.num_nodes)


def selections(tokens: Tokens) -> float:
    """Selections per token."""
    return float(np.count_nonzero(tokens.rows >= 0)) / max(len(tokens.rows), 1)


@kernel
def flow_to_nodes(load: Array, cost: Array, copies: Array) -> Array:
    """cost: [sources, E, nodes]; copies: [E, nodes] -> [sources, E, nodes] shares with even nodes."""
    expert, node = np.nonzero(copies)
    by_copy, use = np.empty((cost.shape[0], expert.shape[0])), np.zeros(cost.shape)
    for source in range(cost.shape[0]):
        for copy in range(expert.shape[0]):
            by_copy[source, copy] = cost[source, expert[copy], node[copy]]
    shares = split_flow(load, by_copy, list_by_expert(expert, node, load.shape[0]), cost.shape[2])
    for source in range(cost.shape[0]):
        for copy in range(expert.shape[0]):
            use[source, expert[copy], node[copy]] = shares[source, copy]
    return use


@kernel
def saved_by_copies(load: Array, cost: Array, use: Array) -> Array:
    """[E, nodes] crossings, times load, that a copy on a node would save the sources that are better served there."""
    sources, experts, nodes = cost.shape
    saved = np.zeros((experts, nodes))
    for source in range(sources):
        for expert in range(experts):
            now = (cost[source, expert] * use[source, expert]).sum()
            for node in range(nodes):
                saved[expert, node] += load[expert] / sources * max(now - cost[source, expert, node], 0.0)
    return saved


@kernel
def lost_copies(load: Array, cost: Array, use: Array, copies: Array) -> Array:
    """[E, nodes] crossings, times load, that a node's copies would be missed for; 0 where there are none elsewhere."""
    sources, experts, nodes = cost.shape
    lost = np.zeros((experts, nodes))
    for expert in range(experts):
        for node in range(nodes):
            if copies[expert, node] == 0 or copies[expert].sum() == copies[expert, node]:
                continue
            for source in range(sources):
                other = np.inf
                for candidate in range(nodes):
                    if candidate != node and copies[expert, candidate] > 0:
                        other = min(other, cost[source, expert, candidate])
                lost[expert, node] += (
                    load[expert] / sources * use[source, expert, node] * (other - cost[source, expert, node])
                )
    return lost


@kernel
def exchange_some(
    saved: Array, lost: Array, load: Array, copies: Array, barred: Array, mean_rank: float, at_once: int
) -> int:
    """Take up to `at_once` exchanges of different experts, in place; returns how many."""
    touched = barred.copy()
    for turn in range(at_once):
        gain, leaving, coming, node = best_exchange(saved, lost, load, copies, touched, mean_rank)
        if gain <= 0.0:
            return turn
        copies[leaving, node] -= 1
        copies[coming, node] += 1
        touched[leaving] = True
        touched[coming] = True
    return at_once


@kernel
def place_round(
    saved: Array, load: Array, copies: Array, free: Array, quota: int, mean_rank: float, node_load: Array
) -> None:
    """Give `quota` free slots, in place, to the copies worth most. saved: [E, nodes] crossings per token."""
    slots_on_node, ranks = free[0] + copies[:, 0].sum(), round(load.sum() / mean_rank)
    most_on_node = copy_limit(load.shape[0], slots_on_node, ranks // free.shape[0])
    for _ in range(min(quota, free.sum())):
        expert, node = best_copy(saved, load, copies, free, most_on_node, mean_rank, node_load)
        if expert < 0:
            break
        copies[expert, node] += 1
        free[node] -= 1
        saved[expert, node] = 0.0


@kernel
def round_to_entries(shares: Array, start: Array, listed: Array, rows: int) -> Array:
    """shares: [sources, P] -> the shares that a node's table rows realise: `rows` of them, of TABLE_WIDTH entries.

    What a source rounds off, the next one makes up for, on the copies that it uses.
    """
    rounded, entries = shares.copy(), TABLE_WIDTH * rows
    owed = np.zeros(shares.shape[1])
    for source in range(shares.shape[0]):
        for expert in range(start.shape[0] - 1):
            slots = listed[start[expert] : start[expert + 1]]
            if slots.shape[0] > 1:
                wanted = np.where(
                    shares[source][slots] > 0.0, np.maximum(shares[source][slots] + owed[slots], 0.0), 0.0
                )
                rounded[source][slots] = share_entries(wanted, entries) / entries
                owed[slots] += shares[source][slots] - rounded[source][slots]
    return rounded
