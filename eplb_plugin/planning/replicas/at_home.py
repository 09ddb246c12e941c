"""Placements that rules which prefer near copies use as evenly as loads say, whatever tokens select together.

Under `cover` all copies of an expert are on one node, so that all of its tokens go there. Under `nearest` heavy experts
are on every node, which serves its own ranks; and a copy serves whole source ranks: of nine copies for 12 ranks three
serve two each, so that nine are no better than six.
"""

from __future__ import annotations

import heapq

import numpy as np

from ...jit import Array
from ...plan_types import Plan
from ..layer.packing import pack, solve_balanced
from ..moves.ranks import count_copies, count_held
from ..traffic.fixed_rules import Cluster
from .counts import list_copies

HEAVY = 0.4  # of a node's mean load: above it an expert is on every node (`nearest`)


def solve_at_home(load: Array, cluster: Cluster) -> Array:
    """load: [E] -> phy2log [P] int32. With fewer experts than nodes, experts lie anywhere."""
    nodes, ranks, slots = cluster.num_nodes, len(cluster.node_of_rank), cluster.slots_per_rank
    experts, per_node = len(load), ranks // nodes * slots
    if experts < nodes:
        return solve_balanced(load[None], ranks * slots, ranks)[0]
    everywhere = np.empty(0, np.int64)
    if cluster.nearest and nodes > 1:
        spare, heavy = ranks * slots - experts, int((load > HEAVY * load.sum() / nodes).sum())
        everywhere = np.argsort(-load, kind="stable")[: min(heavy, spare // (nodes - 1))]
    single = np.setdiff1d(np.arange(experts), everywhere)
    node_of = _homes(load[single], nodes)
    phy2log = np.empty((ranks, slots), np.int32)
    for node in range(nodes):
        here = np.concatenate([everywhere, single[node_of == node]])
        share, served = load[here].copy(), np.full(len(here), ranks)
        share[: len(everywhere)] /= nodes
        served[: len(everywhere)] //= nodes
        if cluster.nearest:
            packed = _pack_whole(share, served, per_node, ranks // nodes)
        else:
            packed = solve_balanced(share[None], per_node, ranks // nodes)[0]
        phy2log[cluster.node_of_rank == node] = here[packed].reshape(-1, slots)
    return phy2log.ravel()


def is_at_home(phy2log: Array, cluster: Cluster, experts: int) -> bool:
    """Whether every expert is on one node only."""
    copies = count_copies(count_held(phy2log, cluster, experts), cluster)
    return bool((np.count_nonzero(copies, axis=1) == 1).all())


def known_from_loads(plan: Plan) -> bool:
    """Whether loads alone tell what ranks get. Where `cover` sends a token depends on all of its experts together."""
    topology, placement = plan.topology, plan.placement
    if plan.dispatch != "cover" or topology.num_nodes == 1:
        return True
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)
    return all(is_at_home(row, cluster, placement.num_experts) for row in placement.phy2log)


def _homes(load: Array, nodes: int) -> Array:
    """load: [items] -> [items] int64 nodes, even in load; no node has more items than it has slots left."""
    padded = np.zeros(max(-(-len(load) // nodes), 1) * nodes)
    padded[: len(load)] = load
    node_of = np.empty(len(padded), np.int64)
    for node, members in enumerate(pack(np.arange(len(padded), dtype=np.int32), padded, nodes)):
        node_of[members] = node
    return node_of[: len(load)]


def _pack_whole(load: Array, served: Array, slots: int, ranks: int) -> Array:
    """phy2log [slots] where the copies of expert e share served[e] source ranks; packed by the most that one serves."""
    copies, left = np.ones(len(load), np.int64), slots - len(load)
    heaviest = [(-float(one), expert) for expert, one in enumerate(load)]
    heapq.heapify(heaviest)
    while heaviest and left > 0:
        _, expert = heapq.heappop(heaviest)
        most = -(-served[expert] // copies[expert])
        more = -(-served[expert] // max(most - 1, 1)) - copies[expert]  # copies until none serves as many
        if 0 < more <= left and copies[expert] + more <= ranks:
            copies[expert] += more
            left -= more
            heapq.heappush(heaviest, (-float(load[expert] * (most - 1) / served[expert]), expert))
    for expert in np.argsort(load, kind="stable"):  # what is left makes nothing better or worse
        more = min(left, max(ranks - copies[expert], 0))
        copies[expert] += more
        left -= more
    copies[0] += left
    items = list_copies(copies)
    most = -(-served // copies)
    return pack(items, (load * most / served)[items], ranks).ravel()
