"""How many copies every expert gets, and on which nodes."""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel

HALVINGS = 7
TOO_HEAVY = 0.8  # share of a rank's mean load above which a single copy stands in the way of packing
TOO_HEAVY_PRICE = 1000.0  # saved crossings per token that a rank's mean load on a too heavy copy is worth …
LOAD_PRICE = 1e-3  # … and on any other
TWIN_PRICE = 1e-6  # for a second copy on one node


@kernel
def copy_limit(num_experts: int, num_slots: int, num_ranks: int) -> int:
    """Most copies of one expert: one per rank, unless there are more slots than that can fill."""
    return max(num_ranks, -(-num_slots // num_experts))


@kernel
def apportion(load: Array, num_slots: int, limit: int) -> Array:
    """[E] int32 copies, summing to `num_slots`: one each, then always to the expert with the largest load per copy.

    Equal loads per copy (zero loads above all): the expert with fewer copies, then the lower id.
    """
    experts = load.shape[0]
    copies = _first_copies(load, num_slots, limit)
    per_copy = np.empty(experts)
    for expert in range(experts):
        per_copy[expert] = load[expert] / copies[expert]
    # while no limit binds, the largest load per copy is above the mean slot: the others need not be looked at
    mean_slot = load.sum() / num_slots
    listed = np.flatnonzero(load > mean_slot)
    for _ in range(num_slots - copies.sum()):
        chosen = _largest_share(per_copy, copies, listed, limit)
        if listed.shape[0] < experts and (chosen < 0 or per_copy[chosen] <= mean_slot):
            listed = np.arange(experts)
            chosen = _largest_share(per_copy, copies, listed, limit)
        copies[chosen] += 1
        per_copy[chosen] = load[chosen] / copies[chosen]
    return copies


@kernel
def _first_copies(load: Array, num_slots: int, limit: int) -> Array:
    """[E] int32 copies that `apportion` makes before all loads per copy are below some value: most of them, at once."""
    copies = np.ones(load.shape[0], np.int32)
    low, high = load.sum() / num_slots, load.max()
    if low <= 0.0:
        return copies
    for _ in range(HALVINGS):
        middle, slots = 0.5 * (low + high), 0
        for expert in range(load.shape[0]):
            slots += _copies_above(load[expert], middle, limit)
        if slots <= num_slots:
            high = middle
        else:
            low = middle
    for expert in range(load.shape[0]):
        copies[expert] = _copies_above(load[expert], high, limit)
    return copies


@kernel
def _copies_above(load: float, value: float, limit: int) -> int:
    """Copies after which the load per copy is no longer above `value` (one too few, rather, where digits are lost)."""
    return max(min(int(np.ceil(load / value * (1.0 - 1e-12))), limit), 1)


@kernel
def _largest_share(per_copy: Array, copies: Array, listed: Array, limit: int) -> int:
    chosen, largest = -1, -1.0
    for expert in listed:
        share = per_copy[expert]
        if share < largest or copies[expert] >= limit:
            continue
        if share > largest or copies[expert] < copies[chosen]:
            chosen, largest = expert, share
    return chosen


@kernel
def list_copies(copies: Array) -> Array:
    """[sum of copies] int32: every expert as often as it has copies, in order of id."""
    items = np.empty(copies.sum(), np.int32)
    filled = 0
    for expert in range(copies.shape[0]):
        for _ in range(copies[expert]):
            items[filled] = expert
            filled += 1
    return items


@kernel
def best_copy(
    saved: Array, load: Array, copies: Array, free: Array, most_on_node: int, mean_rank: float, node_load: Array
) -> tuple[int, int]:
    """(expert, node) of the copy most worth a free slot: one that unloads a rank first, then saved crossings."""
    mean_node = node_load.mean()
    best_expert, best_node, best = -1, -1, -np.inf
    for expert in range(load.shape[0]):
        total = 0
        for node in range(free.shape[0]):
            total += copies[expert, node]
        per_copy = load[expert] / total / mean_rank if mean_rank > 0.0 else 0.0
        urgency = TOO_HEAVY_PRICE * per_copy if per_copy > TOO_HEAVY else 0.0
        for node in range(free.shape[0]):
            if free[node] == 0 or copies[expert, node] >= most_on_node:
                continue
            gain = saved[expert, node]
            if gain > 0.0 and mean_node > 0.0:
                gain *= max(2.0 - node_load[node] / mean_node, 0.1)
            gain += urgency + LOAD_PRICE * per_copy - TWIN_PRICE * copies[expert, node]
            if gain > best:
                best_expert, best_node, best = expert, node, gain
    return best_expert, best_node
