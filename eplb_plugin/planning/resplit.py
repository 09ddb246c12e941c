"""New weights for the newest load, on the same placement: what can be renewed often, because no bytes move."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..plan_types import Plan, PlanOptions
from ..statistics import RoutingStatistics
from .checks import check_input
from .moves.phases import above_zero, parts_by_layer
from .planner import Planner
from .refit_weights import renew_cover, renew_weighted


def resplit(plan: Plan, statistics: RoutingStatistics) -> Plan:
    """`plan` with the weights that suit the load of `statistics`, of the same layers and experts; the placement stays.

    Rules `hash` and `nearest` have no weights of their own to renew: their shares follow from the placement.

    Deterministic. Raises PluginError if the statistics are of other layers or experts. The idea is that of LPLB
    (DeepSeek), which solves it per batch; here it is solved per window.
    """
    began = time.perf_counter()
    topology, rule = plan.topology, plan.dispatch
    check_input(statistics, topology, "balanced", plan.placement, rule, 1, PlanOptions())
    if not plan.has_weights:
        made = Planner(statistics, topology, "balanced", rule, 1, PlanOptions()).use(plan.placement.phy2log)
    else:
        made = renewed(plan, statistics)
    return replace(made, resolved_layers=0, skipped_layers=0, seconds=time.perf_counter() - began)


def renewed(plan: Plan, statistics: RoutingStatistics) -> Plan:
    """`plan`, which has weights of its own, with those that suit the load."""
    phy2log, topology = plan.placement.phy2log, plan.topology
    if plan.source_weights is not None:
        load = above_zero(statistics.load)
        known = np.ascontiguousarray(plan.source_weights)  # one layout, or the kernel is compiled for two
        by_source = renew_weighted(load, phy2log, known, topology.node_of_slot, topology.slots_per_rank)
        return replace(plan, source_weights=by_source, replica_weights=by_source.mean(axis=0))
    assert plan.cover_weights is not None
    parts = parts_by_layer(statistics)
    weights, shares = renew_cover(parts, phy2log, plan.cover_weights, plan.replica_weights, topology.slots_per_rank)
    return replace(plan, cover_weights=weights, replica_weights=shares)
