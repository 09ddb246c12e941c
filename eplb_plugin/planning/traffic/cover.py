"""The rule `cover` on the sample: which nodes tokens need, and which copies they may choose from.

Which nodes a token needs depends on where copies are, not on their weights. So it is simulated once per placement and
kept as counts of choices: how often an expert had which set of nodes to choose from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...dispatch.cover import allowed_nodes, needed_nodes
from ...jit import Array, kernel
from ..sample import Tokens
from .fixed_rules import FEW_NODES


class Choices(NamedTuple):
    """expert, nodes, share: [C] of an expert's selections, that may choose among a set (mask) of nodes."""

    expert: Array
    nodes: Array
    share: Array


@kernel
def list_shared(rows: Array, token: int, masks: Array, shared: Array) -> tuple[int, int]:
    """Write a token's experts on several nodes to `shared: [k]` -> their number, and the nodes of all its others."""
    count, fixed = 0, np.int64(0)
    for k in range(rows.shape[1]):
        if rows[token, k] >= 0:
            mask = masks[rows[token, k]]
            if mask & (mask - 1) == 0:
                fixed |= mask
            else:
                shared[count] = rows[token, k]
                count += 1
    return count, int(fixed)


@kernel
def visited_nodes(rows: Array, token: int, own: int, masks: Array, shared: Array, count: int, fixed: int) -> int:
    """What `needed_nodes` returns, at once for the many tokens of which no further node serves two experts.

    shared, count, fixed: of `list_shared`, which are the same from every source.
    """
    needed, once, twice = np.int64(fixed) | np.int64(1) << own, np.int64(0), np.int64(0)
    for place in range(count):
        mask = masks[shared[place]]
        if mask & needed == 0:
            twice |= once & mask
            once |= mask
    return int(needed) if twice == 0 else needed_nodes(rows[token], own, masks, token)


@kernel
def count_choices(tokens: Tokens, masks: Array, node_of_rank: Array, nodes: int, sources: int) -> Choices:
    """Every token from `sources` source nodes, its sampled one first. An expert without tokens may choose any copy, and
    one that lives on a single node always chooses there.
    """
    experts, few = masks.shape[0], nodes <= FEW_NODES
    counts = np.zeros((experts, 1 << nodes if few else 1), np.int64)
    # Where sets are many, they are listed. A set takes up to 62 bits, so that its expert needs a number of its own.
    most = 0 if few else tokens.rows.size * sources + experts
    listed, of_expert = np.empty(most, np.int64), np.empty(most, np.int64)
    filled, selected = 0, np.zeros(experts)
    rows, shared = tokens.rows, np.empty(tokens.rows.shape[1], np.int64)
    # choices of every token, from each of its source nodes
    for token in range(rows.shape[0]):
        count, fixed = list_shared(rows, token, masks, shared)
        for turn in range(sources if count > 0 else 0):
            own = (node_of_rank[tokens.source[token]] + turn * nodes // sources) % nodes
            needed = visited_nodes(rows, token, own, masks, shared, count, fixed)
            for place in range(count):
                expert = shared[place]
                selected[expert] += 1.0
                if few:
                    counts[expert, allowed_nodes(masks[expert], needed)] += 1
                else:
                    listed[filled], of_expert[filled] = allowed_nodes(masks[expert], needed), expert
                    filled += 1
    # experts that nobody has selected
    for expert in range(experts):
        if selected[expert] == 0.0:
            selected[expert] = 1.0
            if few:
                counts[expert, masks[expert]] = 1
            else:
                listed[filled], of_expert[filled] = masks[expert], expert
                filled += 1
    if few:
        expert, allowed = np.nonzero(counts)
        share = np.empty(expert.shape[0])
        for choice in range(expert.shape[0]):
            share[choice] = counts[expert[choice], allowed[choice]] / selected[expert[choice]]
        return Choices(expert, allowed, share)
    # equal sets of an expert are one choice
    order = np.argsort(of_expert[:filled], kind="mergesort")
    sets, expert = listed[order], of_expert[order]
    bounds = np.searchsorted(expert, np.arange(experts + 1))
    for one in range(experts):
        sets[bounds[one] : bounds[one + 1]].sort()
    first = np.flatnonzero(np.append(True, (sets[1:] != sets[:-1]) | (expert[1:] != expert[:-1])))
    times = np.diff(np.append(first, filled))
    return Choices(expert[first], sets[first], times / selected[expert[first]])


@kernel
def count_cover_arrivals(tokens: Tokens, masks: Array, node_of_rank: Array, nodes: int) -> Array:
    """[nodes] copies that arrive at every node from others."""
    arriving = np.zeros(nodes)
    rows, shared = tokens.rows, np.empty(tokens.rows.shape[1], np.int64)
    for token in range(rows.shape[0]):
        own = node_of_rank[tokens.source[token]]
        count, fixed = list_shared(rows, token, masks, shared)
        needed = visited_nodes(rows, token, own, masks, shared, count, fixed)
        add_arrivals(own, masks, shared, count, needed, 1.0, arriving)
    return arriving


@kernel
def add_arrivals(own: int, masks: Array, shared: Array, count: int, needed: int, sign: float, arriving: Array) -> None:
    """One token's copies, to every node; an expert that is left alone sends one to any of its nodes, equally often.

    shared, count: of `list_shared`.
    """
    for node in range(arriving.shape[0]):
        if (needed >> node) & 1 and node != own:
            arriving[node] += sign
    for place in range(count):
        expert, copies = shared[place], 0
        if masks[expert] & needed:
            continue
        for node in range(arriving.shape[0]):
            copies += (masks[expert] >> node) & 1
        for node in range(arriving.shape[0]):
            arriving[node] += sign * ((masks[expert] >> node) & 1) / copies


@kernel
def cover_pins(tokens: Tokens, masks: Array, node_of_rank: Array, movable: Array, nodes: int) -> tuple[Array, Array]:
    """What no move of a movable expert changes -> (rows with movable experts only, pins [T, nodes] int16).

    A pin is one reason to visit a node: it is the token's own, or a replicated expert reaches no other node.
    """
    singles, shared = tokens.rows.copy(), np.empty(tokens.rows.shape[1], np.int64)
    pins = np.zeros((singles.shape[0], nodes), np.int16)
    for token in range(singles.shape[0]):
        own = node_of_rank[tokens.source[token]]
        count, fixed = list_shared(tokens.rows, token, masks, shared)
        needed = visited_nodes(tokens.rows, token, own, masks, shared, count, fixed)
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
