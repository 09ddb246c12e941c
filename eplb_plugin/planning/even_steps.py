"""Arrange replicas so that `exact` can even every step out, whatever its loads are.

First slots change ranks inside their nodes (`single_steps.swaps`): the nodes which hold an expert stay the same, and
with them the tokens' ways. Then single replicas go to other experts where that is worth it (`single_steps.replicas`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import thinned
from ..placement import Placement
from ..plan_types import PlanOptions
from ..topology import Topology
from .moves.budget import NO_LIMIT, count_moved
from .moves.ranks import count_held, received
from .single_steps.replicas import arrange_replicas
from .traffic.fixed_rules import Cluster

MOST_LOADS = 1 << 13  # steps × experts that a change is judged by: time grows with them
LEAST = 1e-5  # share of the peaks that a swap must save …
REAL_LEAST = 1e-3  # … where ranks hold weights already, that move


def even_steps(
    steps: NDArray[Any],
    phy2log: NDArray[np.int32],
    previous: Placement | None,
    topology: Topology,
    options: PlanOptions,
) -> NDArray[np.int32]:
    """steps: [S, L, E] loads; phy2log: [L, P] as planned -> [L, P] arranged, with no more moves than the options allow.

    previous: the placement that moves are counted from; None: nothing lies anywhere yet.
    """
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)
    experts, arranged = steps.shape[2], phy2log.astype(np.int64)
    cap = NO_LIMIT if options.max_moved_slots is None else int(options.max_moved_slots)
    left = NO_LIMIT if options.max_moved_slots_total is None else int(options.max_moved_slots_total)
    if previous is not None:
        left -= int(count_moved(phy2log, previous.phy2log, topology.num_ranks, experts).sum())
    for layer, row in enumerate(arranged):
        filled = steps[steps[:, layer].any(axis=1), layer]
        if not len(filled):
            continue
        loads = np.ascontiguousarray(thinned(filled, max(MOST_LOADS // experts, 1)), np.float64)
        if previous is None:
            arrange_replicas(
                row, loads, cluster, np.full((topology.num_ranks, experts), topology.num_slots), NO_LIMIT, LEAST
            )
            continue
        if options.is_priced and np.array_equal(row, previous.phy2log[layer]):
            continue  # its move would not pay
        before = count_held(previous.phy2log[layer].astype(np.int64), cluster, experts)
        spent = received(count_held(row, cluster, experts), before)
        arrange_replicas(row, loads, cluster, before, min(cap, spent + max(left, 0)), REAL_LEAST)
        left -= received(count_held(row, cluster, experts), before) - spent
    return arranged.astype(np.int32)
