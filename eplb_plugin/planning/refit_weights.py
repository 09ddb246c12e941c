"""New weights for new loads on a placement that stays: from loads and old weights alone, all layers in one call.

Which nodes tokens need was learnt when the placement was made, and the old weights tell: a share that a source gave to
a copy elsewhere was cheap, and a copy that serves more than its weight says is reached more often. Kept, this loses
nothing against counting tokens again, which takes ten times as long.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .rules.cover import fit_weights
from .rules.min_cost_flow import list_by_expert, split_flow
from .rules.weighted import round_to_entries
from .traffic.cover import Choices

KEPT = 0.5  # of a crossing: what a copy on another node is cheaper by if it had the source's whole share
LEAST_SHARE = 1e-6  # a copy that served nothing may still be reached


@kernel
def renew_weighted(
    load: Array, phy2log: Array, source_weights: Array, node_of_slot: Array, slots_per_rank: int
) -> Array:
    """load: [L, E] > 0; phy2log: [L, P]; source_weights: [nodes, L, P] of before -> those of now."""
    nodes, layers, slots = source_weights.shape
    renewed, cost, rank_of_slot = np.empty(source_weights.shape), np.empty((nodes, slots)), np.arange(slots)
    rank_of_slot //= slots_per_rank
    for layer in range(layers):
        for source in range(nodes):
            for slot in range(slots):
                away = 0.0 if node_of_slot[slot] == source else 1.0
                cost[source, slot] = away * (1.0 - KEPT * source_weights[source, layer, slot])
        copies = list_by_expert(phy2log[layer].astype(np.int64), rank_of_slot, load.shape[1])
        exact = split_flow(load[layer], cost, copies, slots // slots_per_rank)
        renewed[:, layer] = round_to_entries(exact, copies.start, copies.listed, slots // slots_per_rank // nodes)
    return renewed


@kernel
def renew_cover(
    parts: Array, phy2log: Array, weights: Array, shares: Array, slots_per_rank: int
) -> tuple[Array, Array]:
    """parts: [L, W, E] loads; weights: [L, P] int and shares: [L, P] that they led to -> those of now, likewise."""
    layers, slots = phy2log.shape
    renewed, led_to, rank_of_slot = np.empty(phy2log.shape, np.int32), np.empty(shares.shape), np.arange(slots)
    rank_of_slot //= slots_per_rank
    experts, anywhere = np.arange(parts.shape[2]), np.full(parts.shape[2], -1)
    choices, node = Choices(experts, anywhere, np.ones(parts.shape[2])), np.zeros(slots, np.int64)
    for layer in range(layers):
        copies = list_by_expert(phy2log[layer].astype(np.int64), rank_of_slot, parts.shape[2])
        start = weights[layer].astype(np.float64)
        reach = np.maximum(shares[layer], LEAST_SHARE) / start
        fitted, led_to[layer] = fit_weights(parts[layer], choices, copies, node, start, reach, slots // slots_per_rank)
        renewed[layer] = fitted.astype(np.int32)
    return renewed, led_to
