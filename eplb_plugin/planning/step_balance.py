"""How even ranks are in single steps: each waits for its own busiest rank, however even a window of many is.

Balancedness of steps is the mean load over ranks, summed over steps and layers, over the busiest rank's, summed
likewise: the share of the time for which ranks that wait for each other compute, if time grows with load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dispatch.exact.quotas import bounds_above, solve
from ..dispatch.exact.replicas import Replicas, replicas_of
from ..errors import PluginError
from ..plan_types import Plan
from .score import expected_rank_load


def step_balancedness(rank_load: NDArray[Any]) -> float:
    """rank_load: [..., ranks]; without any load: 1."""
    most = float(rank_load.max(axis=-1).sum())
    return float(rank_load.mean(axis=-1).sum()) / most if most else 1.0


def loads_by_shares(steps: NDArray[Any], plan: Plan) -> NDArray[np.float64]:
    """steps: [S, L, E] -> [S, L, ranks] where replicas serve their shares of every step to a fraction.

    Engines draw replicas by hashes, so that small steps are less even than this.
    """
    return np.stack([expected_rank_load(load, plan) for load in steps])


def loads_by_quotas(steps: NDArray[Any], plan: Plan) -> NDArray[np.int64]:
    """The same under `exact`, whose quotas are solved for every step and layer; without wishes for nodes, which they
    keep only as far as ranks stay even. Raises PluginError where `exact` cannot serve the placement."""
    counts = np.rint(steps).astype(np.int32)
    loads = np.zeros((*counts.shape[:2], plan.topology.num_ranks), np.int64)
    for layer, row in enumerate(plan.placement.phy2log):
        replicas = replicas_of(row, plan.topology)
        above = bounds_above(replicas.colours)
        wished = np.zeros((len(replicas.expert), plan.topology.num_nodes), np.int32)
        for step, load in enumerate(counts[:, layer]):
            loads[step, layer] = _rank_load(replicas, load, wished, above)
    return loads


def reached_by_quotas(steps: NDArray[Any], plan: Plan) -> float | None:
    """Balancedness of steps under `exact`; None where it cannot serve the plan's placement: too many nodes, or replicas
    of an expert."""
    try:
        return step_balancedness(loads_by_quotas(steps, plan))
    except PluginError:
        return None


def _rank_load(replicas: Replicas, load: NDArray[np.int32], wished: Any, above: Any) -> NDArray[np.int64]:
    """load: [E] of one step and layer -> [ranks]."""
    single, ranks = np.flatnonzero(replicas.only_slot >= 0), len(replicas.node_of_rank)
    where = replicas.only_slot[single] // replicas.slots_per_rank
    base = np.bincount(where, load[single], ranks).astype(np.int32)
    quota = solve(replicas, wished, np.ascontiguousarray(load[replicas.expert]), base, 0, above)
    return base.astype(np.int64) + np.bincount(replicas.rank, quota, ranks).astype(np.int64)
