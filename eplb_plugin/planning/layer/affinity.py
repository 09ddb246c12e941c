"""A full solve that keeps tokens on few nodes: partition, replicas on nodes, partition again, ranks within nodes.

Plain Python between kernels: one that called them all would compile all of their code once more.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array
from ..rules.base import Rule
from ..rules.fixed import place_copies
from ..sample import Tokens
from ..traffic.fixed_rules import Cluster, copy_shares, count_sources, fixed_pins
from .partition import ANYWHERE, Limits, Needs, grow_groups, grow_nodes, refine_nodes
from .solve import pack_nodes


def home_nodes(load: Array, pairs: Array, rows: Array, nodes: int, groups: int, slack: float, sweeps: int) -> Array:
    """[E] int32: the better of the starts by co-activation and by expert group, refined; arrivals may be uneven yet."""
    movable, own = np.ones(len(load), np.bool_), np.zeros(nodes, np.int64)
    limits = Limits(slack, ANYWHERE, np.zeros(nodes))
    starts = [grow_nodes(load, pairs, nodes, slack, 0)]
    if groups > 1:
        starts.append(grow_groups(load, pairs, nodes, groups, slack))
    visited = []
    for node_of in starts:
        pins = np.zeros((len(rows), nodes), np.int16)
        refine_nodes(load, node_of, movable, Needs(rows, pins, own), limits, sweeps)
        visited.append(np.count_nonzero(pins))
    return starts[int(np.argmin(visited))]


def refine_singles(
    load: Array, copies: Array, cluster: Cluster, tokens: Tokens, slack: float, ingress: float, sweeps: int
) -> None:
    """Swap the single-copy experts between nodes, in place, around the replicated ones. copies: [E, nodes]."""
    movable, node_of = copies.sum(axis=1) == 1, copies.argmax(axis=1).astype(np.int32)
    fixed = (load[:, None] * copy_shares(copies, cluster) * copies)[~movable]
    limits = Limits(slack, ingress, np.cumsum(fixed, axis=0)[-1])
    singles, pins = fixed_pins(copies, cluster, tokens)
    own = count_sources(tokens.source, cluster) if cluster.nearest else np.zeros(cluster.num_nodes, np.int64)
    refine_nodes(load, node_of, movable, Needs(singles, pins, own), limits, sweeps)
    copies[movable] = 0
    copies[movable, node_of[movable]] = 1


def solve_affinity(rule: Rule, pairs: Array, groups: int, slack: float) -> Array:
    """One layer, from scratch -> phy2log [P] int32. pairs: [E, E]; slack: share by which a node may exceed the mean."""
    load, cluster, tokens, search = rule.load, rule.cluster, rule.tokens, rule.search
    home = home_nodes(load, pairs, tokens.rows, cluster.num_nodes, groups, slack, search.sweeps)
    copies = np.zeros((len(load), cluster.num_nodes), np.int32)
    copies[np.arange(len(load)), home] = 1
    free = len(cluster.node_of_rank) // cluster.num_nodes * cluster.slots_per_rank - copies.sum(axis=0)
    place_copies(load, copies, free, cluster, tokens, search.rounds)
    if copies.sum() > len(load):  # replicas changed what the others are worth where
        refine_singles(load, copies, cluster, tokens, slack, rule.ingress_tolerance, search.sweeps)
    return pack_nodes(load[:, None] * copy_shares(copies, cluster), copies, cluster)
