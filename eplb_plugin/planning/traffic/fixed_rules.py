"""Which nodes a token visits under a rule, given how many copies of every expert each node has.

Here copies are known per node only, not yet per rank. An expert's destinations are a list that a token indexes with its
key: the copies' nodes in order under `hash` (key = the token's hash), one node per source rank under `nearest`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..sample import Tokens

FEW_NODES = 8  # up to here tokens are counted per set of nodes that they lack, and valued together


class Cluster(NamedTuple):
    """What the kernels need to know of topology and rule. node_of_rank: [ranks] int32; nearest: the rule, else hash."""

    node_of_rank: Array
    num_nodes: int
    slots_per_rank: int
    nearest: bool


@kernel
def count_sources(source: Array, cluster: Cluster) -> Array:
    """source: [T] ranks -> [nodes] int64 tokens that come from a node."""
    tokens = np.zeros(cluster.num_nodes, np.int64)
    for rank in source:
        tokens[cluster.node_of_rank[rank]] += 1
    return tokens


@kernel
def spread_nearest(copies: Array, first: int, cluster: Cluster, destination: Array) -> None:
    """copies: [nodes] of one expert -> destination: [ranks] node that serves a source rank, as `nearest` does it."""
    nodes, ranks = cluster.num_nodes, cluster.node_of_rank.shape[0]
    served = np.full(nodes, np.inf)  # source ranks per copy
    for node in range(nodes):
        if copies[node] > 0:
            served[node] = ranks // nodes / copies[node]
    for rank in range(ranks):
        if copies[cluster.node_of_rank[rank]] > 0:
            destination[rank] = cluster.node_of_rank[rank]
            continue
        best = -1
        for step in range(nodes):
            node = (first + step) % nodes
            if copies[node] > 0 and (best < 0 or served[node] < served[best]):
                best = node
        destination[rank] = best
        served[best] += 1.0 / copies[best]


@kernel
def list_destinations(copies: Array, cluster: Cluster) -> tuple[Array, Array]:
    """copies: [E, nodes] -> destination [E, widest] int32 nodes and width [E] of every expert's list."""
    experts, ranks = copies.shape[0], cluster.node_of_rank.shape[0]
    total = copies.sum(axis=1)
    widest = max(total.max(), ranks if cluster.nearest else 1)
    destination, width = np.zeros((experts, widest), np.int32), np.ones(experts, np.int64)
    for expert in range(experts):
        if cluster.nearest and total[expert] > 1:
            width[expert] = ranks
            spread_nearest(copies[expert], expert, cluster, destination[expert])
            continue
        width[expert] = total[expert]
        filled = 0
        for node in range(cluster.num_nodes):
            for _ in range(copies[expert, node]):
                destination[expert, filled] = node
                filled += 1
    return destination, width


@kernel
def expert_shares(copies: Array, expert: int, cluster: Cluster) -> Array:
    """copies: [nodes] of one expert -> [nodes] float64 share of its tokens that each single copy on a node serves."""
    shares = np.zeros(cluster.num_nodes)
    if not cluster.nearest:
        shares[copies > 0] = 1.0 / copies.sum()
        return shares
    destination = np.empty(cluster.node_of_rank.shape[0], np.int32)
    spread_nearest(copies, expert, cluster, destination)
    for node in destination:
        shares[node] += 1.0 / (destination.shape[0] * copies[node])
    return shares


@kernel
def copy_shares(copies: Array, cluster: Cluster) -> Array:
    """copies: [E, nodes] -> [E, nodes] `expert_shares` of every expert."""
    shares = np.zeros(copies.shape)
    for expert in range(copies.shape[0]):
        shares[expert] = expert_shares(copies[expert], expert, cluster)
    return shares


@kernel
def fixed_pins(copies: Array, cluster: Cluster, tokens: Tokens) -> tuple[Array, Array]:
    """What no move of a single-copy expert changes -> (rows with single-copy experts only, pins [T, nodes] int16).

    A pin is one reason to visit a node: a replicated expert, and under `nearest` the token's own node, which costs
    nothing. (Under `hash` a copy is chosen without regard to the source, so that the own node is free by chance only.)
    """
    destination, width = list_destinations(copies, cluster)
    singles = tokens.rows.copy()
    pins = np.zeros((singles.shape[0], cluster.num_nodes), np.int16)
    replicated = copies.sum(axis=1) > 1
    for token in range(singles.shape[0]):
        if cluster.nearest:
            pins[token, cluster.node_of_rank[tokens.source[token]]] += 1
        for k in range(singles.shape[1]):
            expert = singles[token, k]
            if expert >= 0 and replicated[expert]:
                singles[token, k] = -1
                pins[token, destination[expert, tokens.key[token] % width[expert]]] += 1
    return singles, pins


@kernel
def count_fixed_arrivals(copies: Array, cluster: Cluster, tokens: Tokens) -> Array:
    """[nodes] copies that all tokens together send to a node from others."""
    destination, width = list_destinations(copies, cluster)
    last_token, arriving = np.full(cluster.num_nodes, -1, np.int64), np.zeros(cluster.num_nodes, np.int64)
    for token in range(tokens.rows.shape[0]):
        last_token[cluster.node_of_rank[tokens.source[token]]] = token
        for k in range(tokens.rows.shape[1]):
            expert = tokens.rows[token, k]
            if expert >= 0:
                node = destination[expert, tokens.key[token] % width[expert]]
                arriving[node] += last_token[node] != token
                last_token[node] = token
    return arriving


@kernel
def copy_values(copies: Array, cluster: Cluster, tokens: Tokens) -> tuple[Array, Array]:
    """Crossings of all tokens together -> what one more copy of an expert on a node would save (negative: add) and what
    one copy less would add, both [E, nodes] float64. The second is zero where an expert has no second copy.
    """
    destination, width = list_destinations(copies, cluster)
    nodes, total = cluster.num_nodes, copies.sum(axis=1)
    saved, lost = np.zeros(copies.shape), np.zeros(copies.shape)
    if not cluster.nearest and nodes <= FEW_NODES:
        _value_sets(_count_unvisited(destination, width, cluster, tokens), copies, saved, lost)
        return saved, lost
    pins, target, price = np.zeros(nodes, np.int32), np.empty(tokens.rows.shape[1], np.int32), np.empty(nodes)
    for token in range(tokens.rows.shape[0]):
        own = cluster.node_of_rank[tokens.source[token]]
        pins[:] = 0
        for k in range(target.shape[0]):
            expert = tokens.rows[token, k]
            if expert >= 0:
                target[k] = destination[expert, tokens.key[token] % width[expert]]
                pins[target[k]] += 1
        for k in range(target.shape[0]):
            expert = tokens.rows[token, k]
            if expert < 0:
                continue
            pins[target[k]] -= 1
            for node in range(nodes):
                price[node] = 1.0 if node != own and pins[node] == 0 else 0.0
            if cluster.nearest:
                _value_nearest(copies[expert], total[expert], price, own, target[k], saved[expert], lost[expert])
            else:
                _value_hash(copies[expert], total[expert], price, saved[expert], lost[expert])
            pins[target[k]] += 1
    return saved, lost


@kernel
def _count_unvisited(destination: Array, width: Array, cluster: Cluster, tokens: Tokens) -> Array:
    """[E, sets of nodes] of an expert's tokens, those that would visit just these nodes for this expert alone."""
    every, bits = (1 << cluster.num_nodes) - 1, np.empty(tokens.rows.shape[1], np.int64)
    count = np.zeros((width.shape[0], every + 1), np.int64)
    for token in range(tokens.rows.shape[0]):
        once, twice = np.int64(0), np.int64(0)
        for k in range(bits.shape[0]):
            expert, bits[k] = tokens.rows[token, k], 0
            if expert >= 0:
                bits[k] = 1 << destination[expert, tokens.key[token] % width[expert]]
                twice |= once & bits[k]
                once |= bits[k]
        own = 1 << cluster.node_of_rank[tokens.source[token]]
        for k in range(bits.shape[0]):
            if bits[k]:
                count[tokens.rows[token, k], every & ~(own | (once & ~bits[k]) | (twice & bits[k]))] += 1
    return count


@kernel
def _value_sets(count: Array, copies: Array, saved: Array, lost: Array) -> None:
    """count: [E, sets of nodes]; adds every token's part to saved and lost, as `_value_hash` does, a set at a time."""
    nodes, total = copies.shape[1], copies.sum(axis=1)
    price = np.empty(nodes)
    for expert in range(count.shape[0]):
        for unvisited in range(1, count.shape[1]):
            if count[expert, unvisited]:
                for node in range(nodes):
                    price[node] = count[expert, unvisited] * ((unvisited >> node) & 1)
                _value_hash(copies[expert], total[expert], price, saved[expert], lost[expert])


@kernel
def _value_hash(copies: Array, total: int, price: Array, saved: Array, lost: Array) -> None:
    """A token picks evenly among all copies; price: [nodes] what it costs this token (or all these) to visit a node."""
    together = 0.0
    for node in range(price.shape[0]):
        together += copies[node] * price[node]
    now = together / total
    for node in range(price.shape[0]):
        saved[node] += (now - price[node]) / (total + 1)
        if total > 1 and copies[node] > 0:
            lost[node] += (together - price[node]) / (total - 1) - now


@kernel
def _value_nearest(copies: Array, total: int, price: Array, own: int, target: int, saved: Array, lost: Array) -> None:
    """A token stays on its own node if there is a copy, else goes where its source rank's fixed copy is."""
    now = price[target]
    if copies[own] == 0:
        for node in range(price.shape[0]):
            saved[node] += now if node == own else (now - price[node]) / (total + 1)
    if total > 1 and copies[target] == 1:
        together = 0.0
        for node in range(price.shape[0]):
            together += copies[node] * price[node]
        lost[target] += (together - now) / (total - 1) - now
