"""plan(): the one entry. Checks everything first, then solves every layer, from scratch or from the old placement.

Servers call `make_plan`: the same plan without what only a reader wants to know of it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from ..dispatch.rules import checked_rule
from ..placement import Placement
from ..plan_types import Dispatch, Plan, PlanOptions, Policy, placement_of
from ..statistics import RoutingStatistics
from ..topology import Topology
from .checks import check_input
from .evenness import less_even
from .peo_slot_order import check_rounds, even_rounds
from .planner import Planner

logger = logging.getLogger("eplb_plugin")


def plan(
    statistics: RoutingStatistics,
    topology: Topology,
    *,
    policy: Policy = "affinity",
    previous: Plan | Placement | None = None,
    dispatch: Dispatch = "weighted",
    num_groups: int = 1,
    options: PlanOptions | None = None,
) -> Plan:
    """A placement for the next window, and the shares its copies will serve under `dispatch`.

    policy: deepseek = the engines' own; balanced = even ranks only; affinity = even ranks and few nodes per token.
    previous: the placement to start from, or the plan that made it, whose weights are then where the new ones start.
    balanced and affinity then repair it with few moves; only where a full solve is clearly better, and the options set
    no bound on moves, a layer is solved afresh (`resolved_layers`). If the options name prices, a layer moves only if
    that saves more time than it costs (`skipped_layers`).
    num_groups: the model's expert groups (group-limited routing); contiguous in the expert ids.
    A window without any selection says nothing: `previous` stays as it is, whatever the policy, and the log says so.
    options.exact: slots change ranks inside their nodes, and some replicas their expert, so that quotas can even single
    steps out (`even_steps`).
    options.peo_rounds: last, slots are ordered within their ranks; that moves nothing between ranks and counts no move.

    Deterministic. Raises PluginError on input that does not fit together, before computing anything.
    """
    options = PlanOptions() if options is None else options
    made = make_plan(
        statistics, topology, policy=policy, previous=previous, dispatch=dispatch, num_groups=num_groups,
        options=options,
    )  # fmt: skip
    if not statistics.load.any() or (options.exact and statistics.steps is not None and policy != "deepseek"):
        return made  # nothing to compare, or arranged for single steps, not for the window
    planner = Planner(statistics, topology, policy, dispatch, num_groups, options)
    old = None if previous is None else placement_of(previous).phy2log
    return replace(made, less_even=less_even(planner, made, old))


def make_plan(
    statistics: RoutingStatistics,
    topology: Topology,
    *,
    policy: Policy,
    previous: Plan | Placement | None,
    dispatch: Dispatch,
    num_groups: int,
    options: PlanOptions,
) -> Plan:
    """The plan without `less_even`, for which vanilla's placement has to be solved as well."""
    began = time.perf_counter()
    old = None if previous is None else placement_of(previous)
    check_input(statistics, topology, policy, old, checked_rule(dispatch), num_groups, options)
    check_rounds(options.peo_rounds, topology.slots_per_rank)
    planner = Planner(statistics, topology, policy, dispatch, num_groups, options)
    if previous is not None and not statistics.load.any():
        logger.info("the window holds no selection: nothing moves")
        kept = planner.keep(previous)
        return replace(kept, seconds=time.perf_counter() - began, resolved_layers=0, skipped_layers=0)
    if previous is not None and options.is_priced:
        made = planner.plan_if_it_pays(previous)
    else:
        made = planner.plan_from(previous)
    if options.exact and policy != "deepseek":
        made = planner.arrange(made, old)
    if options.peo_rounds is not None:
        made = even_rounds(made, planner.load, options.peo_rounds)
    return replace(made, seconds=time.perf_counter() - began)
