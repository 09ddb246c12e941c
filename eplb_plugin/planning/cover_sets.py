"""The rule `cover` on the sample: which nodes tokens need, and what one more copy would spare them.

Which nodes a token needs depends on where copies are, not on their weights. So it is simulated once per placement and
kept as counts of choices: how often an expert had which set of nodes to choose from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..dispatch.cover import needed_nodes
from ..jit import Array, kernel
from .crossings import FEW_NODES
from .replication import best_copy
from .sources import arrival_prices
from .tokens import Tokens
from .visits import list_tokens

OPENED_FOR_MANY = 0.5  # of a crossing: what a further copy saves if the node was opened for replicated experts


class Choices(NamedTuple):
    """expert, nodes, share: [C] of an expert's selections, that may choose among a set (mask) of nodes."""

    expert: Array
    nodes: Array
    share: Array


@kernel
def count_choices(tokens: Tokens, masks: Array, node_of_rank: Array, nodes: int, sources: int) -> Choices:
    """Every token from `sources` source nodes, its sampled one first. An expert without tokens may choose any copy."""
    experts = masks.shape[0]
    few = nodes <= FEW_NODES  # then a table of all sets of nodes is small
    table = np.zeros((experts, 1 << nodes if few else 1), np.int64)
    keys = np.empty(0 if few else tokens.rows.size * sources, np.int64)
    filled, selected = 0, np.zeros(experts)
    for token in range(tokens.rows.shape[0]):
        for turn in range(sources):
            own = (node_of_rank[tokens.source[token]] + turn * nodes // sources) % nodes
            needed = needed_nodes(tokens.rows[token], own, masks, token)
            for expert in tokens.rows[token]:
                if expert >= 0 and masks[expert] & (masks[expert] - 1):
                    selected[expert] += 1.0
                    if few:
                        table[expert, needed & masks[expert]] += 1
                    else:
                        keys[filled] = (needed & masks[expert]) * experts + expert
                        filled += 1
    if few:
        expert, chosen = np.nonzero(table)
        count = np.empty(expert.shape[0], np.int64)
        for choice in range(expert.shape[0]):
            count[choice] = table[expert[choice], chosen[choice]]
    else:
        keys = np.sort(keys[:filled])
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))[: filled if filled else 0]
        count = np.diff(np.append(first, filled))
        expert, chosen = keys[first] % experts, keys[first] // experts
    rest = np.flatnonzero(selected == 0.0)
    share = np.append(count / selected[expert], np.ones(rest.shape[0]))
    return Choices(np.append(expert, rest), np.append(chosen, masks[rest]), share)


@kernel
def count_cover_arrivals(tokens: Tokens, masks: Array, node_of_rank: Array, nodes: int) -> Array:
    """[nodes] copies that arrive at every node from others."""
    arriving = np.zeros(nodes, np.int64)
    for token in range(tokens.rows.shape[0]):
        own = node_of_rank[tokens.source[token]]
        needed = needed_nodes(tokens.rows[token], own, masks, token)
        for node in range(nodes):
            arriving[node] += (needed >> node) & 1
        arriving[own] -= 1
    return arriving


@kernel
def cover_pins(tokens: Tokens, masks: Array, node_of_rank: Array, movable: Array, nodes: int) -> tuple[Array, Array]:
    """What no move of a movable expert changes -> (rows with movable experts only, pins [T, nodes] int16).

    A pin is one reason to visit a node: it is the token's own, or a replicated expert reaches no other node.
    """
    singles = tokens.rows.copy()
    pins = np.zeros((singles.shape[0], nodes), np.int16)
    for token in range(singles.shape[0]):
        own = node_of_rank[tokens.source[token]]
        needed = needed_nodes(tokens.rows[token], own, masks, token)
        pins[token, own] += 1
        for k in range(singles.shape[1]):
            expert = singles[token, k]
            if expert < 0 or movable[expert]:
                continue
            singles[token, k] = -1
            reached = masks[expert] & needed
            if reached & (reached - 1) == 0:
                for node in range(nodes):
                    pins[token, node] += (reached >> node) & 1
    return singles, pins


@kernel
def _value_token(row: Array, own: int, index: int, masks: Array, sign: float, saved: Array, arriving: Array) -> None:
    """Add one token's part of what further copies would save. A single visit is spared if its one expert, alone on
    that node, also has a copy on another needed node; if it was opened for replicated experts, perhaps.
    """
    needed, nodes = needed_nodes(row, own, masks, index), saved.shape[1]
    for node in range(nodes):
        arriving[node] += sign * ((needed >> node) & 1 and node != own)
    once, twice, tied = np.int64(0), np.int64(0), np.int64(0)  # nodes of one, of more single copies; of bound replicas
    for expert in row:
        if expert < 0:
            continue
        mask = masks[expert]
        if mask & (mask - 1) == 0:
            twice |= once & mask
            once |= mask
        else:
            reached = mask & needed
            if reached & (reached - 1) == 0:
                tied |= reached
    for expert in row:
        if expert < 0:
            continue
        mask = masks[expert]
        reached = mask & needed
        if reached & (reached - 1) or (reached >> own) & 1:
            continue
        worth = 0.0
        if mask & (mask - 1) == 0:
            worth = 1.0 if mask & twice == 0 and mask & tied == 0 else 0.0
        elif reached & once == 0:
            worth = OPENED_FOR_MANY
        if worth > 0.0:
            for node in range(nodes):
                if (needed & ~mask) >> node & 1:
                    saved[expert, node] += sign * worth


@kernel
def grow_cover(
    load: Array, copies: Array, free: Array, tokens: Tokens, masks: Array, node_of_rank: Array, most_on_node: int
) -> None:
    """Fill all free slots, in place, one copy at a time; the savings of the tokens that it concerns are renewed.

    copies: [E, nodes]; free: [nodes]; masks: [E], kept up to date.
    """
    saved, arriving = np.zeros(copies.shape), np.zeros(copies.shape[1])
    start, listed = list_tokens(tokens.rows, load.shape[0])
    for token in range(tokens.rows.shape[0]):
        _value_token(tokens.rows[token], node_of_rank[tokens.source[token]], token, masks, 1.0, saved, arriving)
    node_load = (copies * load.reshape(-1, 1)).sum(axis=0)
    home = np.array([np.argmax(copies[expert]) for expert in range(load.shape[0])])
    mean_rank, count = load.sum() / node_of_rank.shape[0], max(tokens.rows.shape[0], 1)
    for _ in range(free.sum()):
        worth = saved / count * arrival_prices(arriving)[home].reshape(-1, 1)
        expert, node = best_copy(worth, load, copies, free, most_on_node, mean_rank, node_load)
        if expert < 0:
            break
        total = copies[expert].sum()
        node_load -= load[expert] / (total * (total + 1)) * copies[expert]
        node_load[node] += load[expert] / (total + 1)
        copies[expert, node] += 1
        free[node] -= 1
        if (masks[expert] >> node) & 1:
            continue
        before = masks[expert]
        for token in listed[start[expert] : start[expert + 1]]:
            own = node_of_rank[tokens.source[token]]
            _value_token(tokens.rows[token], own, token, masks, -1.0, saved, arriving)
            masks[expert] = before | (np.int64(1) << node)
            _value_token(tokens.rows[token], own, token, masks, 1.0, saved, arriving)
            masks[expert] = before
        masks[expert] = before | (np.int64(1) << node)
