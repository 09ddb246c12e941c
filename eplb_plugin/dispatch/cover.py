"""The rule `cover`: a token's k experts are seen together and share the nodes that the token visits anyway.

Needed nodes = the token's own + those of experts that live on one node only + greedy openings where a node serves two
or more of the rest: always the node that holds most experts not yet served (Chvátal 1979), ties by a hash. Each expert
then takes one of its copies on needed nodes, or of all its copies if none is there (it costs one more node, whichever
it is), in proportion to integer weights, by a hash of (token index, source rank, expert). Bit n of a mask stands for
node n.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from ..plan_types import Plan

MOST_NODES = 62  # bits of a mask
MOST_WEIGHT = 255


@kernel
def mixed(first: int, second: int) -> int:
    """0 … 2³²-1: an integer hash of two numbers (multiply and xor-shift rounds, every product cut to 32 bits)."""
    low = np.uint64(0xFFFFFFFF)
    state = (np.uint64(first) * np.uint64(2654435769) + np.uint64(second) * np.uint64(2246822519)) & low
    state = ((state ^ (state >> np.uint64(16))) * np.uint64(0x7FEB352D)) & low
    state = ((state ^ (state >> np.uint64(15))) * np.uint64(0x846CA68B)) & low
    return int(state ^ (state >> np.uint64(16)))


@kernel
def node_masks(copies: Array) -> Array:
    """copies: [E, nodes] -> [E] int64 nodes that hold an expert."""
    masks = np.zeros(copies.shape[0], np.int64)
    for expert in range(copies.shape[0]):
        for node in range(copies.shape[1]):
            if copies[expert, node] > 0:
                masks[expert] |= np.int64(1) << node
    return masks


@kernel
def needed_nodes(row: Array, own: int, masks: Array, key: int) -> int:
    """Mask of the nodes that a token visits in any case; an expert that has no copy there sends it to one more.

    row: [k] ids, -1 = none; own: its source's node; key: breaks ties.
    """
    needed = np.int64(1) << own
    for expert in row:
        if expert >= 0 and masks[expert] & (masks[expert] - 1) == 0:
            needed |= masks[expert]
    while True:
        reachable = np.int64(0)
        for expert in row:
            if expert >= 0 and masks[expert] & needed == 0:
                reachable |= masks[expert]
        best, most, turn, node = 0, 1, 0, 0
        while reachable >> node:
            if (reachable >> node) & 1:
                served = 0
                for expert in row:
                    if expert >= 0 and masks[expert] & needed == 0 and (masks[expert] >> node) & 1:
                        served += 1
                if served > 1 and served >= most:
                    drawn = mixed(key, node)
                    if served > most or drawn > turn:
                        best, most, turn = node, served, drawn
            node += 1
        if most == 1:
            return int(needed)
        needed |= np.int64(1) << best


@kernel
def allowed_nodes(mask: int, needed: int) -> int:
    """Mask of the nodes where an expert on the nodes of `mask` may be taken."""
    return mask & needed if mask & needed else mask


def copy_weights(plan: Plan, layer: int) -> Array:
    """[P] int64 >= 1 proportions in which an expert's copies are taken."""
    if plan.cover_weights is not None:
        return plan.cover_weights[layer].astype(np.int64)
    return integer_weights(plan.replica_weights[layer], plan.placement.phy2log[layer])


@kernel
def integer_weights(weights: Array, phy2log: Array) -> Array:
    """weights: [P] >= 0 -> [P] int64 in 1 … MOST_WEIGHT, the largest of every expert scaled to MOST_WEIGHT."""
    largest = np.zeros(phy2log.max() + 1)
    for slot in range(phy2log.shape[0]):
        largest[phy2log[slot]] = max(largest[phy2log[slot]], weights[slot])
    scaled = np.ones(phy2log.shape[0], np.int64)
    for slot in range(phy2log.shape[0]):
        if largest[phy2log[slot]] > 0.0:
            part = weights[slot] / largest[phy2log[slot]]
            scaled[slot] = np.int64(max(np.rint(part * MOST_WEIGHT), 1.0))
    return scaled


@kernel
def token_keys(sources: Array, index: Array) -> Array:
    """[T] int64 what a token draws by: its position alone would make all ranks choose alike in the same step."""
    keys = np.empty(index.shape[0], np.int64)
    for token in range(index.shape[0]):
        keys[token] = mixed(index[token], sources[token])
    return keys


@kernel
def route_cover(
    ids: Array, own: Array, keys: Array, log2phy: Array, counts: Array, node_of_slot: Array, weights: Array, nodes: int
) -> Array:
    """ids: [T, k]; own: [T] the source's node; keys: [T] of `token_keys`; weights: [P] -> [T, k] int32 slots."""
    copies = np.zeros((counts.shape[0], nodes), np.int32)
    for expert in range(counts.shape[0]):
        for slot in log2phy[expert, : counts[expert]]:
            copies[expert, node_of_slot[slot]] += 1
    masks, slots = node_masks(copies), np.full(ids.shape, -1, np.int32)
    for token in range(ids.shape[0]):
        needed = needed_nodes(ids[token], own[token], masks, keys[token])
        for k in range(ids.shape[1]):
            expert = ids[token, k]
            if expert < 0:
                continue
            allowed, total = allowed_nodes(masks[expert], needed), np.int64(0)
            for slot in log2phy[expert, : counts[expert]]:
                total += weights[slot] * ((allowed >> node_of_slot[slot]) & 1)
            left = mixed(keys[token], expert + nodes) * total >> 32
            for slot in log2phy[expert, : counts[expert]]:
                if (allowed >> node_of_slot[slot]) & 1:
                    slots[token, k] = slot
                    left -= weights[slot]
                    if left < 0:
                        break
    return slots
