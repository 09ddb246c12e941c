"""New weights for the newest load, on the same placement: what can be renewed often, because no bytes move."""

from __future__ import annotations

import time
from dataclasses import replace

from ..plan_types import Plan, PlanOptions
from ..statistics import RoutingStatistics
from .checks import check_input
from .job import Job


def resplit(plan: Plan, statistics: RoutingStatistics) -> Plan:
    """`plan` with the weights that suit `statistics`, of the same layers and experts; the placement stays.

    Rules `hash` and `nearest` have no weights of their own to renew: their shares follow from the placement.

    Deterministic. Raises PluginError if the statistics are of other layers or experts. The idea is that of LPLB
    (DeepSeek), which solves it per batch; here it is solved per window.
    """
    began = time.perf_counter()
    topology, rule = plan.topology, plan.dispatch
    check_input(statistics, topology, "balanced", plan.placement, rule, 1, PlanOptions())
    job = Job(statistics, topology, "balanced", rule, 1, PlanOptions())
    return replace(job.used(plan.placement.phy2log), seconds=time.perf_counter() - began)
