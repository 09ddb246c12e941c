"""Recordings as uneven as asked for, and two ways to serve them."""

from __future__ import annotations

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.advice import Candidate
from eplb_plugin.workloads.families import FAMILIES
from eplb_plugin.workloads.imbalance import fitted_router, loads_at
from eplb_plugin.workloads.routing import ClusteredRouter

EXPERTS, LAYERS, HASH = 32, 2, ("hash",)
AFFINITY, BALANCED = Candidate("affinity", "hash", 4), Candidate("balanced", "hash", 0)


def recording(factor: float, strength: float = 3.0, tokens: int = 1600) -> RoutingStatistics:
    router = ClusteredRouter(LAYERS, EXPERTS, 4, num_topics=4, strength=strength, purity=0.8)
    target = loads_at(factor, FAMILIES["lognormal"], EXPERTS, 4, 4, LAYERS)
    return RoutingStatistics.from_topk(fitted_router(router, target.shares, tokens).window(tokens), EXPERTS)
