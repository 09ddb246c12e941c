"""On which node a selection would like to be served: what `exact` keeps where ranks stay even with it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..cover import mixed, opened_nodes
from .replicas import Replicas


class Wisher(NamedTuple):
    """How the tokens of one source wish.

    masks: [E] int64, see `masks_of`; held: mask of the nodes on which its tokens lie (several, where several ranks
    route the same tokens); rank: stands for the source in hashes; nodes: their number; covers: for few nodes, as rule
    `cover` does, else for their own.
    """

    masks: Array
    held: int
    rank: int
    nodes: int
    covers: bool


@kernel
def masks_of(replicas: Replicas) -> Array:
    """[E] int64: bit n = the expert has a replica on node n."""
    masks = np.zeros(replicas.row_of.shape[0], np.int64)
    for expert in range(masks.shape[0]):
        row = replicas.row_of[expert]
        if row < 0 and replicas.only_slot[expert] >= 0:
            masks[expert] = np.int64(1) << replicas.node_of_rank[replicas.only_slot[expert] // replicas.slots_per_rank]
        if row >= 0:
            for place in range(replicas.start[row], replicas.start[row + 1]):
                masks[expert] |= np.int64(1) << replicas.node[place]
    return masks


@kernel
def token_wishes(row: Array, index: int, wisher: Wisher, wishes: Array) -> None:
    """row: [k] int32 ids, -1 = none, of the index-th token of its source's batch -> wishes: [k], filled: a node, or the
    number of nodes: anywhere.

    Under `cover`: where a replica costs no further copy of the token: on a node where it lies if it can be, else on one
    that it visits anyway, drawn by a hash. Where it visits all nodes that hold the expert, it does not mind.
    """
    key, needed = mixed(index, wisher.rank), np.int64(wisher.held)
    if wisher.covers:
        needed = np.int64(opened_nodes(row, wisher.held, wisher.masks, key))
    for k in range(row.shape[0]):
        wishes[k] = wisher.nodes
        if row[k] < 0:
            continue
        mask = wisher.masks[row[k]]
        if not wisher.covers or mask & ~needed:
            near = mask & wisher.held
            wishes[k] = drawn_node(near if near else mask & needed, mixed(key, row[k] + wisher.nodes), wisher.nodes)


@kernel
def drawn_node(allowed: int, drawn: int, nodes: int) -> int:
    """One of the nodes of a mask, by a number below 2³²; `nodes` if there are none."""
    count = 0
    for node in range(nodes):
        count += (allowed >> node) & 1
    turn = drawn * count >> 32
    for node in range(nodes):
        if (allowed >> node) & 1:
            if turn == 0:
                return node
            turn -= 1
    return nodes
