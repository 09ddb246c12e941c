"""Which nodes tokens visit if every source node has its own weights: the rule `weighted`, simulated on the sample.

A token takes the entry of its source's row that the hash of its position picks, as `dispatch.tables` lays rows out,
here per node only. Bit n of a mask stands for node n.
"""

from __future__ import annotations

import numpy as np

from ...dispatch.tables import TABLE_WIDTH, share_entries
from ...jit import Array, kernel
from ..sample import Tokens
from .fixed_rules import FEW_NODES

INGRESS_PRICE = 4.0  # copies that one more than allowed at a node is worth
PRICE_POWER = 3.0
MOST_SOURCES = 8  # that a token is tried from: beyond, every source gets a part of the tokens


@kernel
def node_rows(shares: Array) -> Array:
    """shares: [sources, E, nodes] -> [sources, E, TABLE_WIDTH] int8 node of every entry."""
    rows = np.empty((shares.shape[0], shares.shape[1], TABLE_WIDTH), np.int8)
    for source in range(shares.shape[0]):
        for expert in range(shares.shape[1]):
            heaviest = np.argmax(shares[source, expert])
            rows[source, expert] = heaviest
            if shares[source, expert, heaviest] >= 1.0 - 1e-9:
                continue
            entries, filled = share_entries(shares[source, expert], TABLE_WIDTH), 0
            for node in range(shares.shape[2]):
                rows[source, expert, filled : filled + entries[node]] = node
                filled += entries[node]
    return rows


@kernel
def lone_visits(tokens: Tokens, rows: Array, nodes: int, wanted: Array) -> tuple[Array, Array]:
    """[sources, E, nodes] float64: of a source's tokens of an expert, those that only this expert could send to a node;
    [sources, E] float64: all of them.

    Every token is tried from up to MOST_SOURCES sources; the own node is always visited. rows: of `node_rows`; wanted:
    [E] bool, experts to count for.
    """
    if nodes <= FEW_NODES:
        return _lone_among_few(tokens, rows, nodes, wanted)
    sources, experts, width = rows.shape
    lone, selected = np.zeros((sources, experts, nodes)), np.zeros((sources, experts))
    every = (1 << nodes) - 1
    stride = -(-sources // MOST_SOURCES) | 1  # odd: a power of two would meet few entries of a row
    for source in range(sources):
        for token in range(source % stride, tokens.rows.shape[0], stride):
            entry = tokens.key[token] % width
            once, twice = 1 << source, 1 << source
            for k in range(tokens.rows.shape[1]):
                if tokens.rows[token, k] >= 0:
                    bit = 1 << rows[source, tokens.rows[token, k], entry]
                    twice |= once & bit
                    once |= bit
            for k in range(tokens.rows.shape[1]):
                expert = tokens.rows[token, k]
                if expert < 0 or not wanted[expert]:
                    continue
                selected[source, expert] += 1.0
                bit = 1 << rows[source, expert, entry]
                unvisited = every & ~((once & ~bit) | (twice & bit))
                for node in range(nodes):
                    lone[source, expert, node] += (unvisited >> node) & 1
    return lone, selected


@kernel
def _lone_among_few(tokens: Tokens, rows: Array, nodes: int, wanted: Array) -> tuple[Array, Array]:
    """`lone_visits` for all sources of a token at once: byte s of a word is what source s sees, bit n of it node n."""
    sources, experts, width = rows.shape
    words, own, every = np.zeros((experts, width), np.int64), np.int64(0), np.int64(0)
    for source in range(sources):
        own |= np.int64(1) << (8 * source + source)
        every |= np.int64((1 << nodes) - 1) << (8 * source)
        for expert in range(experts):
            for entry in range(width):
                words[expert, entry] |= np.int64(1) << (8 * source + np.int64(rows[source, expert, entry]))
    by_set, selected = np.zeros((experts, sources, 1 << nodes), np.int32), np.zeros(experts, np.int64)
    for token in range(tokens.rows.shape[0]):
        entry = tokens.key[token] % width
        once, twice = own, own
        for k in range(tokens.rows.shape[1]):
            if tokens.rows[token, k] >= 0:
                word = words[tokens.rows[token, k], entry]
                twice |= once & word
                once |= word
        for k in range(tokens.rows.shape[1]):
            expert = tokens.rows[token, k]
            if expert < 0 or not wanted[expert]:
                continue
            selected[expert] += 1
            word = words[expert, entry]
            unvisited = every & ~((once & ~word) | (twice & word))
            for source in range(sources):
                by_set[expert, source, (unvisited >> (8 * source)) & 255] += 1
    lone, all_selected = np.zeros((sources, experts, nodes)), np.zeros((sources, experts))
    for expert in range(experts):
        for source in range(sources if selected[expert] > 0 else 0):
            all_selected[source, expert] = selected[expert]
            for unvisited in range(1, 1 << nodes):
                count = by_set[expert, source, unvisited]
                for node in range(nodes if count > 0 else 0):
                    lone[source, expert, node] += count * ((unvisited >> node) & 1)
    return lone, all_selected


@kernel
def visit_cost(tokens: Tokens, rows: Array, nodes: int, wanted: Array) -> Array:
    """[sources, E, nodes] crossings that one more selection of an expert costs if sent to a node, 0 … 1.

    wanted: [E] bool; any other expert, and one that the sample lacks: 1 for every node but the own.
    """
    cost, selected = lone_visits(tokens, rows, nodes, wanted)
    for source in range(cost.shape[0]):
        for expert in range(cost.shape[1]):
            if selected[source, expert] > 0.0:
                cost[source, expert] /= selected[source, expert]
            else:
                cost[source, expert] = 1.0
                cost[source, expert, source] = 0.0
    return cost


@kernel
def source_pins(tokens: Tokens, rows: Array, movable: Array, node_of_rank: Array, nodes: int) -> tuple[Array, Array]:
    """What no move of a movable expert changes -> (rows with movable experts only, pins [T, nodes] int16).

    A pin is one reason to visit a node: the token's own node, which is free, and every other expert's destination.
    """
    singles = tokens.rows.copy()
    pins = np.zeros((singles.shape[0], nodes), np.int16)
    for token in range(singles.shape[0]):
        source, entry = node_of_rank[tokens.source[token]], tokens.key[token] % rows.shape[2]
        pins[token, source] += 1
        for k in range(singles.shape[1]):
            expert = singles[token, k]
            if expert >= 0 and not movable[expert]:
                singles[token, k] = -1
                pins[token, rows[source, expert, entry]] += 1
    return singles, pins


@kernel
def count_arrivals(tokens: Tokens, rows: Array, node_of_rank: Array, nodes: int) -> Array:
    """[nodes] copies that arrive at every node from others, every token being sent from its own source."""
    arriving = np.zeros(nodes, np.int64)
    for token in range(tokens.rows.shape[0]):
        source, entry = node_of_rank[tokens.source[token]], tokens.key[token] % rows.shape[2]
        visited = 1 << source
        for k in range(tokens.rows.shape[1]):
            if tokens.rows[token, k] >= 0:
                node = rows[source, tokens.rows[token, k], entry]
                arriving[node] += (visited >> node) & 1 == 0
                visited |= 1 << node
    return arriving


@kernel
def arrival_prices(arriving: Array) -> Array:
    """arriving: [nodes] copies -> [nodes] what a copy to a node is taken to cost: the more, the more arrive there."""
    mean = arriving.mean()
    return (arriving / mean) ** PRICE_POWER if mean > 0.0 else np.ones(arriving.shape[0])


@kernel
def arrival_cost(arriving: Array, tolerance: float) -> float:
    """arriving: [nodes] copies -> their number, and a price on what exceeds the mean node by more than `tolerance`."""
    over = np.maximum(arriving - arriving.mean() * (1.0 + tolerance), 0.0)
    return float(arriving.sum() + INGRESS_PRICE * over.sum())
