"""What a layer's joint solution is made of: a placement, and how its copies are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from ...jit import Array, kernel
from ..effort import Search
from ..sample import Tokens
from ..traffic.fixed_rules import Cluster


class Use(NamedTuple):
    """How the copies of a placement are used.

    shares: [P] share of its expert's tokens that a slot serves; source_shares: [nodes, P] the same per source node
    (rule `weighted`); weights: [P] int32 proportions (rule `cover`); the one that a rule lacks is empty.
    """

    shares: Array
    source_shares: Array
    weights: Array


class Layer(NamedTuple):
    """phy2log: [P] int32; use: of its copies; peak: busiest rank's planned load over the mean."""

    phy2log: Array
    use: Use
    peak: float


@dataclass(frozen=True)
class Rule(ABC):
    """A dispatch rule's own steps of the joint method, for one layer.

    load: [E] > 0; parts: [W, E] whose sum it is. copies: [E, nodes]. A node use is the rule's own form of how nodes
    share an expert's tokens. has_shares: whether copies have shares of their own.
    """

    load: Array
    parts: Array
    cluster: Cluster
    tokens: Tokens
    node_of_slot: Array
    ingress_tolerance: float
    search: Search
    has_shares: ClassVar[bool] = True

    @property
    def own_is_free(self) -> bool:
        """Whether a token's visit to its own node is one that no plan saves."""
        return True

    @property
    def is_nodeless(self) -> bool:
        """Whether it does not matter at all on which nodes copies lie."""
        return False

    def with_tokens(self, tokens: Tokens) -> Self:
        return replace(self, tokens=tokens)

    @abstractmethod
    def add_replicas(self, copies: Array, free: Array, mean_rank: float) -> Array: ...
    @abstractmethod
    def settle(self, copies: Array, use: Array) -> Array: ...
    @abstractmethod
    def shares(self, use: Array) -> Array: ...
    @abstractmethod
    def pins(self, use: Array, movable: Array) -> tuple[Array, Array]: ...
    @abstractmethod
    def use_of(self, phy2log: Array, before: Array | None = None) -> Use: ...
    @abstractmethod
    def to_nodes(self, phy2log: Array, use: Use) -> Array: ...
    @abstractmethod
    def arrivals(self, use: Array) -> Array: ...


def peak_ratio(slot_load: Array, ranks: int) -> float:
    """slot_load: [P] -> load of the busiest rank over the mean rank's."""
    rank_load = slot_load.reshape(ranks, -1).sum(axis=1)
    mean = float(rank_load.mean())
    return float(rank_load.max()) / mean if mean > 0.0 else 1.0


def reordered(layer: Layer, phy2log: Array, slots_per_rank: int) -> Layer:
    """`layer` with every rank's experts in the order of `phy2log: [P]`, which has the same experts on every rank."""
    base = np.arange(len(phy2log)) // slots_per_rank * (int(phy2log.max()) + 1)
    origin = np.empty(len(phy2log), np.int64)
    origin[np.argsort(base + phy2log, kind="stable")] = np.argsort(base + layer.phy2log, kind="stable")
    shares, source_shares, weights = layer.use
    use = Use(shares[origin], source_shares[:, origin], weights[origin] if len(weights) else weights)
    return Layer(phy2log, use, layer.peak)


@kernel
def cap_shares(shares: Array, load: Array, copies: Array, limit: float) -> None:
    """No copy is to serve more than `limit` load while others of its expert have room, in place (water filling).

    shares: [E, nodes] of an expert's tokens on a node; copies: [E, nodes].
    """
    for expert in range(load.shape[0]):
        total = copies[expert].sum()
        if total < 2 or load[expert] <= 0.0:
            continue
        even = copies[expert] / total
        most = np.maximum(limit * copies[expert] / load[expert], even)
        for _ in range(8):
            over = np.maximum(shares[expert] - most, 0.0)
            if over.sum() < 1e-9:
                break
            shares[expert] -= over
            room = np.maximum(most - shares[expert], 0.0)
            shares[expert] += over.sum() * (room / room.sum() if room.sum() > 1e-12 else even)


def node_shares(phy2log: Array, node_of_slot: Array, shares: Array, experts: int, nodes: int) -> Array:
    """shares: [P] or [sources, P] -> [E, nodes] or [sources, E, nodes] summed over the slots of an expert on a node."""
    flat = phy2log.astype(np.int64) * nodes + node_of_slot
    rows = [np.bincount(flat, weights=row, minlength=experts * nodes) for row in np.atleast_2d(shares)]
    return np.stack(rows).reshape(*shares.shape[:-1], experts, nodes)


def keep_at_home(node_use: Array, single: Array, home: Array) -> None:
    """node_use: [..., E, nodes], in place: every single-copy expert is used on its home alone."""
    experts = np.flatnonzero(single)
    node_use[..., experts, :] = 0.0
    node_use[..., experts, home[experts]] = 1.0
