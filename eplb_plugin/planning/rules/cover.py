"""Placement and copies' weights together, for the rule `cover`: its own steps of the joint method.

Weights are fitted multiplicatively: a copy on a rank above the mean loses weight, below it gains (as in iterative
proportional fitting, Deming and Stephan 1940), on counted choices; the flattest iterate is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...dispatch.cover import integer_weights, node_masks
from ...jit import Array, kernel
from ..replicas.counts import copy_limit
from ..replicas.cover import exchange_cover, grow_cover
from ..sample import Tokens, thinned
from ..traffic.cover import Choices, count_choices, count_cover_arrivals, cover_pins
from .base import Rule, Use, node_shares
from .min_cost_flow import Copies, list_by_expert

STEPS = 60
PATIENCE = 12  # steps that may bring nothing, before weights are taken for settled
STEP_POWER = 1.0
FLAT = 1.001
LEAST_WEIGHT = 1.0 / 255.0
SOURCES = 8  # source nodes that every token is tried from


@dataclass(frozen=True)
class CoverRule(Rule):
    """A node use is [2, E, nodes]: weights, and the shares of an expert's tokens that they lead to."""

    def add_replicas(self, copies: Array, free: Array, mean_rank: float) -> Array:
        nodes, slots = len(free), len(self.node_of_slot)
        most_on_node = copy_limit(len(self.load), slots // nodes, len(self.cluster.node_of_rank) // nodes)
        grow_cover(self.load, copies, free, self._guides, node_masks(copies), self.cluster, most_on_node)
        return self.exchange_replicas(copies)

    def exchange_replicas(self, copies: Array) -> Array:
        if self.search.exchanges > 0:
            exchange_cover(self.load, copies, self._guides, node_masks(copies), self.cluster, self.ingress_tolerance)
        weights = copies.astype(np.float64)
        return np.stack([weights, weights / weights.sum(axis=1, keepdims=True)])

    def settle(self, copies: Array, use: Array) -> Array:
        """Weights and shares that make nodes even, starting from `use`."""
        expert, node = np.nonzero(copies)
        weights = np.maximum(use[0, expert, node], LEAST_WEIGHT)
        fitted, shares = self._fit(self._guides, copies, expert, node, node, weights, copies.shape[1])
        settled = np.zeros(use.shape)
        settled[0, expert, node], settled[1, expert, node] = fitted, shares
        return settled

    def shares(self, use: Array) -> Array:
        return use[1].copy()

    def pins(self, use: Array, movable: Array) -> tuple[Array, Array]:
        masks, cluster = node_masks(use[0] > 0), self.cluster
        return cover_pins(self.tokens, masks, cluster.node_of_rank, movable, cluster.num_nodes)

    def use_of(self, phy2log: Array, before: Array | None = None) -> Use:
        """Integer weights for a placement; before: node use to start from, default equal weights."""
        experts, nodes, ranks = len(self.load), self.cluster.num_nodes, len(self.cluster.node_of_rank)
        copies = node_shares(phy2log, self.node_of_slot, np.ones(len(phy2log)), experts, nodes)
        weights = np.ones(len(phy2log))
        if before is not None:
            weights = (before[0] / np.maximum(copies, 1.0))[phy2log, self.node_of_slot]
            weights = np.where(weights > 0.0, weights, before[0].max(axis=1)[phy2log])  # a copy that is new there
        rank_of_slot = np.arange(len(phy2log)) // self.cluster.slots_per_rank
        expert = phy2log.astype(np.int64)
        fitted, shares = self._fit(self.tokens, copies, expert, self.node_of_slot, rank_of_slot, weights, ranks)
        return Use(shares, np.empty((0, len(phy2log))), integer_weights(fitted, phy2log).astype(np.int32))

    def to_nodes(self, phy2log: Array, use: Use) -> Array:
        pair = np.stack([use.weights.astype(np.float64), use.shares])
        return node_shares(phy2log, self.node_of_slot, pair, len(self.load), self.cluster.num_nodes)

    def arrivals(self, use: Array) -> Array:
        return count_cover_arrivals(
            self.tokens, node_masks(use[0] > 0), self.cluster.node_of_rank, self.cluster.num_nodes
        )

    @cached_property
    def _guides(self) -> Tokens:
        return thinned(self.tokens, self.search.guides)

    def _fit(
        self, tokens: Tokens, copies: Array, expert: Array, node: Array, bin_of: Array, weights: Array, bins: int
    ) -> tuple[Array, Array]:
        sources = min(SOURCES, self.cluster.num_nodes)
        masks = node_masks(copies)
        choices = count_choices(tokens, masks, self.cluster.node_of_rank, self.cluster.num_nodes, sources)
        listed = list_by_expert(expert, bin_of, len(self.load))
        return fit_weights(self.parts, choices, listed, node.astype(np.int64), weights, np.ones(len(node)), bins)


@kernel
def _certain_shares(choices: Choices, copies: Copies, node: Array) -> tuple[Array, Array]:
    """[C] shares that no weight changes, because only one copy is in reach; and which choices do have a choice."""
    shares, free = np.zeros(node.shape[0]), np.zeros(choices.expert.shape[0], np.bool_)
    for choice in range(choices.expert.shape[0]):
        expert, allowed, only, reached = choices.expert[choice], choices.nodes[choice], 0, 0
        for copy in copies.listed[copies.start[expert] : copies.start[expert + 1]]:
            if (allowed >> node[copy]) & 1:
                only = copy
                reached += 1
        free[choice] = reached > 1
        if reached == 1:
            shares[only] += choices.share[choice]
    return shares, np.flatnonzero(free)


@kernel
def _add_choices(free: Array, choices: Choices, copies: Copies, node: Array, weights: Array, shares: Array) -> None:
    """Add to shares: [C] what the choices `free` make of the weights: [C]."""
    for choice in free:
        expert, allowed = choices.expert[choice], choices.nodes[choice]
        members = copies.listed[copies.start[expert] : copies.start[expert + 1]]
        total = 0.0
        for copy in members:
            if (allowed >> node[copy]) & 1:
                total += weights[copy]
        for copy in members:
            if (allowed >> node[copy]) & 1:
                shares[copy] += choices.share[choice] * weights[copy] / total


@kernel
def fit_weights(
    parts: Array, choices: Choices, copies: Copies, node: Array, weights: Array, reach: Array, bins: int
) -> tuple[Array, Array]:
    """Weights and shares [C] of every copy that make bins even; weights as integers would express them.

    parts: [W, E] loads of parts of the traffic, in each of which bins are to be even; reach: [C] by how much more often
    than its weight says a copy is taken; 1 where the choices tell all.
    """
    expert, bin_of = copies.expert, copies.bin
    certain, free = _certain_shares(choices, copies, node)
    best, best_shares, lowest, power, vain = weights, weights, np.inf, STEP_POWER, 0
    whole_mean = parts.sum() / bins
    for _ in range(STEPS):
        whole = integer_weights(weights, expert).astype(np.float64)
        shares = certain.copy()
        _add_choices(free, choices, copies, node, whole * reach, shares)
        bin_load, peaks, changed = np.zeros(bins), 0.0, weights.copy()
        for part in range(parts.shape[0]):
            bin_load[:] = 0.0
            for copy in range(weights.shape[0]):
                bin_load[bin_of[copy]] += shares[copy] * parts[part, expert[copy]]
            mean = bin_load.mean()
            if mean <= 0.0:  # a row that only fills up
                continue
            peaks += bin_load.max()
            factor = (mean / np.maximum(bin_load, 1e-3 * mean)) ** (power * mean / whole_mean)
            changed *= factor[bin_of]
        if peaks < lowest:
            lowest, best, best_shares, vain = peaks, whole, shares, 0
        else:
            power, vain = max(0.97 * power, 0.2), vain + 1
        if lowest <= whole_mean * FLAT or vain == PATIENCE:
            break
        largest = np.zeros(parts.shape[1])
        for copy in range(weights.shape[0]):
            largest[expert[copy]] = max(largest[expert[copy]], changed[copy])
        for copy in range(weights.shape[0]):
            changed[copy] = max(changed[copy] / largest[expert[copy]], LEAST_WEIGHT)
        weights = changed
    return best, best_shares
