"""Give a new placement the old one's labels: nodes, ranks and slots are renumbered so that most weights stay."""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ..traffic.fixed_rules import Cluster


@kernel
def assign(overlap: Array) -> Array:
    """overlap: [n, n] -> [n] column of every row: largest overlaps first, then exchanges while they help."""
    size = overlap.shape[0]
    column, taken = np.full(size, -1, np.int64), np.zeros(size, np.bool_)
    for value in range(overlap.max(), -1, -1):
        for row in range(size):
            for col in range(size):
                if column[row] < 0 and not taken[col] and overlap[row, col] == value:
                    column[row] = col
                    taken[col] = True
    improved = True
    while improved:
        improved = False
        for a in range(size):
            for b in range(a + 1, size):
                now = overlap[a, column[a]] + overlap[b, column[b]]
                if overlap[a, column[b]] + overlap[b, column[a]] > now:
                    column[a], column[b] = column[b], column[a]
                    improved = True
    return column


@kernel
def _overlaps(new: Array, old: Array, experts: int) -> Array:
    """new, old: [bins, slots] -> [bins, bins] experts that a new and an old bin share (with multiplicity)."""
    bins = new.shape[0]
    overlap = np.zeros((bins, bins), np.int64)
    there = np.zeros(experts, np.int64)
    for b in range(bins):
        there[:] = 0
        for expert in old[b]:
            there[expert] += 1
        for a in range(bins):
            for expert in new[a]:
                if there[expert] > 0:
                    overlap[a, b] += 1
                    there[expert] -= 1
            there[:] = 0
            for expert in old[b]:
                there[expert] += 1
    return overlap


@kernel
def keep_slots(phy2log: Array, old: Array, slots_per_rank: int) -> Array:
    """phy2log [P] with every rank's experts in their old slots where they have one, the others in the slots left."""
    kept = np.full(phy2log.shape[0], -1, phy2log.dtype)
    for first in range(0, phy2log.shape[0], slots_per_rank):
        used = np.zeros(slots_per_rank, np.bool_)
        for slot in range(first, first + slots_per_rank):
            for place in range(slots_per_rank):
                if not used[place] and phy2log[first + place] == old[slot]:
                    kept[slot] = old[slot]
                    used[place] = True
                    break
        place = 0
        for slot in range(first, first + slots_per_rank):
            if kept[slot] < 0:
                while used[place]:
                    place += 1
                kept[slot] = phy2log[first + place]
                used[place] = True
    return kept


@kernel
def relabel(phy2log: Array, old: Array, cluster: Cluster, experts: int) -> Array:
    """phy2log [P] with nodes exchanged as a whole, then ranks within nodes; slots within ranks: `keep_slots`."""
    nodes, slots_per_rank = cluster.num_nodes, cluster.slots_per_rank
    ranks = np.empty((nodes, cluster.node_of_rank.shape[0] // nodes), np.int64)
    for node in range(nodes):
        ranks[node] = np.flatnonzero(cluster.node_of_rank == node)
    new_ranks, old_ranks = phy2log.reshape(-1, slots_per_rank), old.reshape(-1, slots_per_rank)
    new_nodes = np.empty((nodes, ranks.shape[1] * slots_per_rank), phy2log.dtype)
    old_nodes = np.empty_like(new_nodes)
    for node in range(nodes):
        for place in range(ranks.shape[1]):
            span = slice(place * slots_per_rank, (place + 1) * slots_per_rank)
            new_nodes[node, span] = new_ranks[ranks[node, place]]
            old_nodes[node, span] = old_ranks[ranks[node, place]]
    result = np.empty_like(new_ranks)
    target = assign(_overlaps(new_nodes, old_nodes, experts))
    for node in range(nodes):
        new, was = new_ranks[ranks[node]], old_ranks[ranks[target[node]]]
        place_of = assign(_overlaps(new, was, experts))
        for place in range(ranks.shape[1]):
            result[ranks[target[node], place_of[place]]] = new[place]
    return result.ravel()


@kernel
def relabel_layers(target: Array, layers: Array, fresh: Array, old: Array, cluster: Cluster, experts: int) -> None:
    """target[layers] = fresh: [layers, P] with the labels of old: [L, P]."""
    for row in range(layers.shape[0]):
        before = old[layers[row]]
        target[layers[row]] = keep_slots(relabel(fresh[row], before, cluster, experts), before, cluster.slots_per_rank)
