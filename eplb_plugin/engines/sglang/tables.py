"""SGLang's table for `--ep-dispatch-algorithm static`: the one copy that a rank uses of every expert.

Equal, draw for draw, to SGLang's `compute_logical_to_rank_dispatch_physical_map`, which asks every rank about every
expert in Python and takes a large part of a second per rebalance. Here only experts that have copies are looked at, for
all ranks at once. The nodes are the plugin's: SGLang knows servers, not declared NVLink domains.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...topology import Topology


def dispatch_table(
    log2phy: NDArray[Any], topology: Topology, rank: int, num_slots: int, seed: int = 42
) -> NDArray[np.int64]:
    """[L, E] int64 slot that `rank` uses for every expert.

    log2phy: [L, E, X] slots of every expert, padded with -1 at the end. A copy on the own rank comes first, then one on
    the own node unless all are there; ranks that have neither are spread evenly over the copies, in an order drawn from
    `seed`, which all ranks draw alike.
    """
    copies = (log2phy >= 0).sum(2)
    table = log2phy[:, :, 0].astype(np.int64)
    layers, experts = np.nonzero(copies > 1)  # in the order in which SGLang draws
    slots, count = log2phy[layers, experts], copies[layers, experts]
    valid = np.arange(slots.shape[1]) < count[:, None]
    rank_of = slots // (num_slots // topology.num_ranks)
    node_of = topology.node_of_rank[np.where(valid, rank_of, 0)]
    on_rank = valid[:, None] & (rank_of[:, None] == np.arange(topology.num_ranks)[:, None])  # [copied, ranks, X]
    on_node = valid[:, None] & (node_of[:, None] == topology.node_of_rank[:, None])
    has_own = on_rank.any(2)
    has_near = on_node.any(2) & (on_node.sum(2) < count[:, None])
    first = np.where(has_own, on_rank.argmax(2), on_node.argmax(2))
    chosen = np.take_along_axis(slots, first, 1).astype(np.int64)
    draw = random.Random(seed)
    left = ~(has_own | has_near)
    for row in np.flatnonzero(left.any(1)):
        ranks = np.flatnonzero(left[row])
        chosen[row, ranks] = _spread(slots[row, : count[row]].tolist(), len(ranks), draw)
    table[layers, experts] = chosen[:, rank]
    return table


def _spread(slots: list[int], times: int, draw: random.Random) -> list[int]:
    """`times` of the slots, each as often as the others or once more, in random order."""
    rounds, rest = divmod(times, len(slots))
    spread = slots * rounds + draw.sample(slots, k=rest)
    draw.shuffle(spread)
    return spread
