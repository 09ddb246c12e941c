"""A full solve that keeps tokens on few nodes: partition, replicas on nodes, partition again, ranks within nodes."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .crossings import Cluster, copy_shares, count_sources, fixed_pins
from .packing import pack
from .partition import ANYWHERE, Limits, grow_groups, grow_nodes, refine_nodes
from .replication import list_copies, place_copies
from .search import Search
from .tokens import Tokens


@kernel
def home_nodes(load: Array, pairs: Array, rows: Array, nodes: int, groups: int, slack: float, sweeps: int) -> Array:
    """[E] int32: the better of the starts by co-activation and by expert group, refined; arrivals may be uneven yet."""
    movable, own = np.ones(load.shape[0], np.bool_), np.zeros(nodes, np.int64)
    limits = Limits(slack, ANYWHERE, np.zeros(nodes))
    best, fewest = np.empty(0, np.int32), np.int64(0)
    for start in range(2 if groups > 1 else 1):
        if start == 0:
            node_of = grow_nodes(load, pairs, nodes, slack)
        else:
            node_of = grow_groups(load, pairs, nodes, groups, slack)
        pins = np.zeros((rows.shape[0], nodes), np.int16)
        refine_nodes(load, node_of, movable, rows, pins, own, limits, sweeps)
        visited = np.int64(np.count_nonzero(pins))
        if start == 0 or visited < fewest:
            best, fewest = node_of, visited
    return best


@kernel
def refine_singles(
    load: Array, copies: Array, cluster: Cluster, tokens: Tokens, slack: float, ingress: float, sweeps: int
) -> None:
    """Swap the single-copy experts between nodes, in place, around the replicated ones. copies: [E, nodes]."""
    experts = load.shape[0]
    shares = copy_shares(copies, cluster)
    movable, node_of = np.zeros(experts, np.bool_), np.zeros(experts, np.int32)
    fixed_load = np.zeros(cluster.num_nodes)
    for expert in range(experts):
        movable[expert] = copies[expert].sum() == 1
        node_of[expert] = np.argmax(copies[expert])
        if not movable[expert]:
            fixed_load += load[expert] * shares[expert] * copies[expert]
    singles, pins = fixed_pins(copies, cluster, tokens)
    own = np.zeros(cluster.num_nodes, np.int64)
    if cluster.nearest:
        own += count_sources(tokens.source, cluster)
    refine_nodes(load, node_of, movable, singles, pins, own, Limits(slack, ingress, fixed_load), sweeps)
    for expert in range(experts):
        if movable[expert]:
            copies[expert] = 0
            copies[expert, node_of[expert]] = 1


@kernel
def pack_nodes(load: Array, copies: Array, cluster: Cluster) -> Array:
    """copies: [E, nodes] -> phy2log [P] int32, every node's replicas packed onto its ranks."""
    ranks, slots = cluster.node_of_rank.shape[0], cluster.slots_per_rank
    shares = copy_shares(copies, cluster)
    phy2log = np.empty(ranks * slots, np.int32)
    for node in range(cluster.num_nodes):
        items = list_copies(copies[:, node])
        weight = np.empty(items.shape[0])
        for item in range(items.shape[0]):
            weight[item] = load[items[item]] * shares[items[item], node]
        members = pack(items, weight, ranks // cluster.num_nodes)
        for place, rank in enumerate(np.flatnonzero(cluster.node_of_rank == node)):
            phy2log[rank * slots : (rank + 1) * slots] = members[place]
    return phy2log


@kernel
def solve_affinity(
    load: Array, pairs: Array, cluster: Cluster, tokens: Tokens, groups: int, slack: float, ingress: float,
    search: Search,
) -> Array:  # fmt: skip
    """One layer, from scratch -> phy2log [P] int32. load: [E] float64; pairs: [E, E]."""
    home = home_nodes(load, pairs, tokens.rows, cluster.num_nodes, groups, slack, search.sweeps)
    copies = place_copies(load, home, cluster, tokens, search.rounds)
    if copies.sum() > load.shape[0]:  # replicas changed what the others are worth where
        refine_singles(load, copies, cluster, tokens, slack, ingress, search.sweeps)
    return pack_nodes(load, copies, cluster)
