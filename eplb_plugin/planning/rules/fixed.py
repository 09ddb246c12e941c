"""The rules `hash` and `nearest` in the joint method: copies have no weights of their own, the placement says all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...dispatch.rules import fill_nearest
from ...jit import Array, kernel
from ..replicas.counts import best_copy, copy_limit
from ..sample import Tokens
from ..traffic.fixed_rules import Cluster, copy_shares, copy_values, count_fixed_arrivals, fixed_pins
from .base import Rule, Use, node_shares
from .min_cost_flow import list_by_expert


@dataclass(frozen=True)
class FixedRule(Rule):
    """`cluster` says which of both rules. A node use is [E, nodes]: the copies themselves."""

    has_shares: ClassVar[bool] = False

    @property
    def own_is_free(self) -> bool:
        """Under `hash` a copy is chosen without regard to the source: the own node is free by chance only."""
        return self.cluster.nearest

    @property
    def is_nodeless(self) -> bool:
        return not self.cluster.nearest and len(self.tokens.rows) == 0

    def add_replicas(self, copies: Array, free: Array, mean_rank: float) -> Array:
        place_copies(self.load, copies, free, self.cluster, self.tokens, self.search.rounds)
        return copies.astype(np.float64)

    def settle(self, copies: Array, use: Array) -> Array:
        return copies.astype(np.float64)

    def shares(self, use: Array) -> Array:
        copies = use.astype(np.int32)
        shares: Array = copy_shares(copies, self.cluster) * copies
        return shares

    def pins(self, use: Array, movable: Array) -> tuple[Array, Array]:
        singles, pins = fixed_pins(use.astype(np.int32), self.cluster, self.tokens)
        return singles, pins

    def use_of(self, phy2log: Array, before: Array | None = None) -> Use:
        if self.cluster.nearest:
            shares = nearest_shares(phy2log, self.cluster.node_of_rank, self.cluster.slots_per_rank, len(self.load))
        else:
            shares = 1.0 / np.bincount(phy2log)[phy2log]
        return Use(shares, np.empty((0, len(phy2log))), np.empty(0, np.int32))

    def to_nodes(self, phy2log: Array, use: Use) -> Array:
        return node_shares(phy2log, self.node_of_slot, np.ones(len(phy2log)), len(self.load), self.cluster.num_nodes)

    def arrivals(self, use: Array) -> Array:
        arriving: Array = count_fixed_arrivals(use.astype(np.int32), self.cluster, self.tokens)
        return arriving


@kernel
def nearest_shares(phy2log: Array, node_of_rank: Array, slots_per_rank: int, experts: int) -> Array:
    """[P] share of its expert's tokens that a slot serves under `nearest`, if tokens come evenly from all ranks."""
    ranks, slots = node_of_rank.shape[0], np.arange(phy2log.shape[0])
    listed, served = list_by_expert(phy2log.astype(np.int64), slots, experts), np.zeros(phy2log.shape[0])
    line = np.empty(ranks, np.int32)
    for expert in range(experts):
        fill_nearest(
            listed.listed[listed.start[expert] : listed.start[expert + 1]], expert, node_of_rank, slots_per_rank, line
        )
        for slot in line:
            served[slot] += 1.0
    return served / ranks


@kernel
def place_copies(load: Array, copies: Array, free: Array, cluster: Cluster, tokens: Tokens, rounds: int) -> None:
    """Fill every free slot, in place, where a copy helps most. copies: [E, nodes]; free: [nodes].

    In `rounds`, because every copy changes what the next would save.
    """
    experts, ranks, nodes = load.shape[0], cluster.node_of_rank.shape[0], cluster.num_nodes
    most_on_node = copy_limit(experts, ranks // nodes * cluster.slots_per_rank, ranks // nodes)
    for turn in range(rounds):
        saved = copy_values(copies, cluster, tokens)[0] / max(tokens.rows.shape[0], 1)
        shares = copy_shares(copies, cluster)
        node_load = np.zeros(nodes)
        for expert in range(experts):
            node_load += load[expert] * shares[expert] * copies[expert]
        for _ in range(-(-free.sum() // (rounds - turn))):
            expert, node = best_copy(saved, load, copies, free, most_on_node, load.sum() / ranks, node_load)
            total = copies[expert].sum()
            node_load -= load[expert] / (total * (total + 1)) * copies[expert]
            node_load[node] += load[expert] / (total + 1)
            copies[expert, node] += 1
            free[node] -= 1
            saved[expert] *= 0.5  # until the next round measures it
