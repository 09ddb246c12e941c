"""Dispatch `cover`: a token's k experts are seen together and share the nodes that the token visits anyway.

Needed nodes = the token's own + those of experts that live on one node only + greedy openings where a node serves two
or more of the rest: always the node that holds most experts not yet served (Chvátal 1979), ties by a hash. Each expert
then takes one of its replicas on needed nodes, or of all its replicas if none is there (it costs one more node,
whichever it is), in proportion to integer shares, by a hash of (token index, source rank, expert). Bit n of a mask
stands for node n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import mismatch
from ..jit import Array, kernel
from ..limits import MOST_NODES, MOST_SLOTS, MOST_WEIGHT, NODE_SHIFT, SLOT_SHIFT
from ..plan_types import Plan


class CoverMaps(NamedTuple):
    """What the choice reads of a placement and its shares; made by `cover_maps`.

    nodes: [L, E] int64, mask of the nodes that hold an expert; counts: [L, E] int32 replicas;
    copies: [L, E, width] int32, in slot order: slot << SLOT_SHIFT | node << NODE_SHIFT | share.
    """

    nodes: Array
    counts: Array
    copies: Array


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
    """Mask of the nodes that a token visits in any case; an expert that has no replica there sends it to one more.

    row: [k] ids, -1 = none; own: its source's node; key: breaks ties.
    """
    return opened_nodes(row, 1 << own, masks, key)


@kernel
def opened_nodes(row: Array, held: int, masks: Array, key: int) -> int:
    """The same for a token that lies on several nodes already, because several ranks route it: held is their mask."""
    needed = np.int64(held)
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
    """[P] int64 >= 1 proportions in which an expert's replicas are taken."""
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


def cover_maps(plan: Plan, layers: Sequence[int], width: int | None = None) -> CoverMaps:
    """The maps of some layers of a plan. width: entries for replicas, by default as many as an expert may come to have.

    Raises PluginError if a share, a slot or a node does not fit into its bits.
    """
    placement, node_of_slot = plan.placement, plan.topology.node_of_slot
    for what, count, most in (("nodes", plan.topology.num_nodes, MOST_NODES), ("slots", len(node_of_slot), MOST_SLOTS)):
        if count > most:
            raise mismatch(what, found=count, expected=f"at most {most} for dispatch cover", fix="dispatch: weighted")
    shape = len(layers), placement.num_experts
    maps = CoverMaps(
        nodes=np.zeros(shape, np.int64),
        counts=placement.replica_count[list(layers)].astype(np.int32),
        copies=np.zeros((*shape, width or placement.num_slots - placement.num_experts + 1), np.int32),
    )
    for row, layer in enumerate(layers):
        weights = copy_weights(plan, layer)
        if weights.min() < 1 or weights.max() > MOST_WEIGHT:
            found, expected = f"{weights.min()}..{weights.max()}", f"1..{MOST_WEIGHT}"
            fix = "leave cover_weights out, or plan again"
            raise mismatch("cover_weights", found=found, expected=expected, fix=fix)
        _pack(placement.log2phy[layer], maps.counts[row], node_of_slot, weights, maps.nodes[row], maps.copies[row])
    return maps


@kernel
def _pack(log2phy: Array, counts: Array, node_of_slot: Array, weights: Array, nodes: Array, copies: Array) -> None:
    """Fill nodes: [E] and copies: [E, width]."""
    for expert in range(counts.shape[0]):
        for replica in range(counts[expert]):
            slot = log2phy[expert, replica]
            nodes[expert] |= np.int64(1) << node_of_slot[slot]
            copies[expert, replica] = slot << SLOT_SHIFT | node_of_slot[slot] << NODE_SHIFT | weights[slot]


@kernel
def cover_token(row: Array, held: int, key: int, num_nodes: int, nodes: Array, counts: Array, copies: Array) -> Array:
    """row: [k] ids, -1 = none; held: mask of the nodes that the token lies on; key: what it draws by, `mixed(token
    index, source rank)`, because its position alone would make all ranks choose alike in the same step.
    nodes, counts, copies: of one layer -> [k] int32 slots.
    """
    slots = np.full(row.shape[0], -1, np.int32)
    needed = opened_nodes(row, held, nodes, key)
    for k in range(row.shape[0]):
        expert = row[k]
        if expert < 0:
            continue
        allowed, total = allowed_nodes(nodes[expert], needed), np.int64(0)
        for packed in copies[expert, : counts[expert]]:
            if (allowed >> ((packed >> NODE_SHIFT) & 63)) & 1:
                total += packed & MOST_WEIGHT
        left = mixed(key, expert + num_nodes) * total >> 32
        for packed in copies[expert, : counts[expert]]:
            if (allowed >> ((packed >> NODE_SHIFT) & 63)) & 1:
                left -= packed & MOST_WEIGHT
                if left < 0:
                    slots[k] = packed >> SLOT_SHIFT
                    break
    return slots


@kernel
def route_cover(
    ids: Array, sources: Array, index: Array, node_of_rank: Array, nodes: Array, counts: Array, copies: Array
) -> Array:
    """ids: [T, k]; sources: [T] ranks; index: [T] in their batches; the maps of one layer -> [T, k] int32 slots."""
    slots, num_nodes = np.empty(ids.shape, np.int32), np.max(node_of_rank) + 1
    for token in range(ids.shape[0]):
        held, key = np.int64(1) << node_of_rank[sources[token]], mixed(index[token], sources[token])
        slots[token] = cover_token(ids[token], held, key, num_nodes, nodes, counts, copies)
    return slots
