"""Where copies are worth most under the rule `cover`: one at a time, then exchanged while fewer tokens cross.

What a copy more would spare, or a copy less would cost, is kept per expert and node, and renewed for the tokens that a
change concerns only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..sample import Tokens
from ..traffic.cover import add_arrivals, list_shared, visited_nodes
from ..traffic.fixed_rules import Cluster
from ..traffic.node_visits import list_tokens
from ..traffic.weighted import arrival_cost, arrival_prices
from .counts import best_copy
from .exchange import best_exchange

OPENED_FOR_MANY = 0.5  # of a crossing: what a further copy saves if the node was opened for replicated experts
MOST_EXCHANGES = 60
MOST_FAILURES = 6  # in a row


class Worth(NamedTuple):
    """saved, lost: [E, nodes] crossings that a copy more spares, a copy less costs; arriving: [nodes] copies."""

    saved: Array
    lost: Array
    arriving: Array


@kernel
def _value_token(rows: Array, token: int, own: int, masks: Array, shared: Array, sign: float, worth: Worth) -> None:
    """Add one token's part. shared: [k], to work in.

    A visit is spared if its one expert, alone on that node, also has a copy on a needed node; if the node was opened
    for several replicated experts, perhaps. A copy is missed by tokens that reach no other, unless they then visit
    another node instead.
    """
    saved, lost, arriving = worth.saved, worth.lost, worth.arriving
    count, fixed = list_shared(rows, token, masks, shared)  # nodes that are needed whatever copies are added
    needed, nodes = visited_nodes(rows, token, own, masks, shared, count, fixed), saved.shape[1]
    add_arrivals(own, masks, shared, count, needed, sign, arriving)
    once, twice = np.int64(1) << own, np.int64(0)  # nodes that are needed for one reason, for more
    for k in range(rows.shape[1]):
        if rows[token, k] >= 0:
            reached = masks[rows[token, k]] & needed
            if reached & (reached - 1) == 0:
                twice |= once & reached
                once |= reached
    # experts of one replica that alone open their node: another on a needed node would spare the visit
    for k in range(rows.shape[1]):
        expert = rows[token, k]
        if expert >= 0:
            mask = masks[expert]
            if mask & (mask - 1) == 0 and mask & twice == 0:
                spared = needed & ~mask
                for node in range(nodes):
                    if (spared >> node) & 1:
                        saved[expert, node] += sign
    # replicated experts: what each replica that is reached is worth, and what one on another needed node would be
    held = np.int64(1) << own | fixed
    for place in range(count):
        expert = shared[place]
        mask = masks[expert]
        reached = mask & needed
        if reached & (reached - 1):
            continue
        if reached & twice:
            for node in range(nodes):
                if (reached >> node) & 1:
                    lost[expert, node] += sign
        if reached & held:
            continue
        value, spared = sign * (1.0 if reached == 0 else OPENED_FOR_MANY), needed & ~mask
        for node in range(nodes):
            if (spared >> node) & 1:
                saved[expert, node] += value


@kernel
def _open_worth(tokens: Tokens, masks: Array, node_of_rank: Array, nodes: int) -> Worth:
    experts, shared = masks.shape[0], np.empty(tokens.rows.shape[1], np.int64)
    worth = Worth(np.zeros((experts, nodes)), np.zeros((experts, nodes)), np.zeros(nodes))
    for token in range(tokens.rows.shape[0]):
        _value_token(tokens.rows, token, node_of_rank[tokens.source[token]], masks, shared, 1.0, worth)
    return worth


@kernel
def _renew(
    expert: int, mask: int, concerned: Array, tokens: Tokens, masks: Array, cluster: Cluster, worth: Worth
) -> None:
    """Give an expert other nodes, in place. concerned: its tokens."""
    before, shared = masks[expert], np.empty(tokens.rows.shape[1], np.int64)
    if before == mask:
        return
    for token in concerned:
        own = cluster.node_of_rank[tokens.source[token]]
        masks[expert] = before
        _value_token(tokens.rows, token, own, masks, shared, -1.0, worth)
        masks[expert] = mask
        _value_token(tokens.rows, token, own, masks, shared, 1.0, worth)


@kernel
def _priced(saved: Array, masks: Array, arriving: Array) -> Array:
    """saved: [E, nodes], dearer where the node that is spared gets many copies."""
    prices, priced = arrival_prices(arriving), saved.copy()
    for expert in range(masks.shape[0]):
        for node in range(prices.shape[0]):
            if masks[expert] == np.int64(1) << node:
                priced[expert] *= prices[node]
    return priced


@kernel
def grow_cover(
    load: Array, copies: Array, free: Array, tokens: Tokens, masks: Array, cluster: Cluster, most_on_node: int
) -> None:
    """Fill all free slots, in place. copies: [E, nodes]; free: [nodes]; masks: [E], kept up to date."""
    worth = _open_worth(tokens, masks, cluster.node_of_rank, copies.shape[1])
    start, listed = list_tokens(tokens.rows, load.shape[0])
    node_load = (copies * load.reshape(-1, 1)).sum(axis=0)
    mean_rank, count = load.sum() / cluster.node_of_rank.shape[0], max(tokens.rows.shape[0], 1)
    for _ in range(free.sum()):
        saved = _priced(worth.saved / count, masks, worth.arriving)
        expert, node = best_copy(saved, load, copies, free, most_on_node, mean_rank, node_load)
        if expert < 0:
            break
        total = copies[expert].sum()
        node_load -= load[expert] / (total * (total + 1)) * copies[expert]
        node_load[node] += load[expert] / (total + 1)
        copies[expert, node] += 1
        free[node] -= 1
        concerned = listed[start[expert] : start[expert + 1]]
        _renew(expert, masks[expert] | (np.int64(1) << node), concerned, tokens, masks, cluster, worth)


@kernel
def exchange_cover(
    load: Array, copies: Array, tokens: Tokens, masks: Array, cluster: Cluster, tolerance: float
) -> None:
    """Let experts change places with redundant copies on the same node, in place, while fewer tokens cross."""
    worth = _open_worth(tokens, masks, cluster.node_of_rank, copies.shape[1])
    start, listed = list_tokens(tokens.rows, load.shape[0])
    mean_rank = load.sum() / cluster.node_of_rank.shape[0]
    barred, failures = np.zeros(copies.shape, np.bool_), 0
    cost = arrival_cost(worth.arriving, tolerance)
    for _ in range(MOST_EXCHANGES):
        saved = _priced(worth.saved, masks, worth.arriving)
        gain, leaving, coming, node = best_exchange(saved, worth.lost, load, copies, barred, mean_rank)
        if gain <= 0.0 or failures == MOST_FAILURES:
            break
        masks_before = masks[leaving], masks[coming]
        bit = np.int64(1) << node
        kept = masks[leaving] if copies[leaving, node] > 1 else masks[leaving] & ~bit
        of_leaving, of_coming = listed[start[leaving] : start[leaving + 1]], listed[start[coming] : start[coming + 1]]
        _renew(leaving, kept, of_leaving, tokens, masks, cluster, worth)
        _renew(coming, masks[coming] | bit, of_coming, tokens, masks, cluster, worth)
        now = arrival_cost(worth.arriving, tolerance)
        if now < cost:
            cost, failures = now, 0
            copies[leaving, node] -= 1
            copies[coming, node] += 1
        else:
            failures += 1
            barred[coming, node] = True
            _renew(coming, masks_before[1], of_coming, tokens, masks, cluster, worth)
            _renew(leaving, masks_before[0], of_leaving, tokens, masks, cluster, worth)
