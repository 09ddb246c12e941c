"""Compiling whatever planning calls before a server serves: later, a rebalance would wait for it, for 16 s a kernel."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..placement import Placement
from ..plan_types import Dispatch, Plan, PlanOptions, Policy
from ..planning.plan import make_plan
from ..planning.planner import plan_of
from ..planning.resplit import resplit
from ..planning.step_balance import reached_by_quotas
from ..statistics import RoutingStatistics
from ..topology import Topology
from .outcome import assess
from .plan_codec import accept, encode

TOKENS, STEPS = 64, 4


class Planned(NamedTuple):
    """What decides which kernels plans need. top_k: experts per token; 0: plans are made from loads alone."""

    topology: Topology
    policy: Policy
    dispatch: Dispatch
    num_experts: int
    num_groups: int
    top_k: int


def warm_up(what: Planned, options: PlanOptions, renews: bool) -> float:
    """Go through rebalances of one layer's made-up traffic as `proposal.py` does; returns the seconds it took.

    First from a placement, with a target that is never met, so that every way to improve it is tried; then from the
    plan that came of it, with the shares that it has after its travel. renews: whether shares are solved in between.
    """
    began = time.perf_counter()
    statistics, slots = made_up(what), np.arange(what.topology.num_slots, dtype=np.int32)
    in_force = plan_of(Placement(slots[None] % what.num_experts), what.topology, what.dispatch)
    for one in (replace(options, balance_tolerance=0.0), options):
        made = plan_for(what, statistics, in_force, one)
        assess(statistics, in_force, made)
        in_force = accept(encode(made), in_force)
    if options.exact and statistics.steps is not None:
        reached_by_quotas(statistics.steps, in_force)
    if renews:
        resplit(in_force, replace(statistics, coactivation=None, sample=None))
    return time.perf_counter() - began


def plan_for(what: Planned, statistics: RoutingStatistics, previous: Plan | None, options: PlanOptions) -> Plan:
    """`plan` for one model, as a server calls it."""
    return make_plan(
        statistics,
        what.topology,
        policy=what.policy,
        previous=previous,
        dispatch=what.dispatch,
        num_groups=what.num_groups,
        options=options,
    )


def made_up(what: Planned) -> RoutingStatistics:
    """Tokens, or loads where none are recorded, that prefer experts with low ids, then those with high ones: even ones
    leave nothing to do, and neither do phases that are alike."""
    wanted = 1.0 / np.arange(1, what.num_experts + 1)
    return _window(what, wanted).merge(_window(what, wanted[::-1]))


def _window(what: Planned, wanted: NDArray[np.float64]) -> RoutingStatistics:
    if not what.top_k:
        return RoutingStatistics(np.rint(TOKENS * wanted)[None])
    drawn = np.random.default_rng(0).exponential(size=(1, TOKENS, what.num_experts)) / wanted
    steps = np.arange(TOKENS) * STEPS // TOKENS
    return RoutingStatistics.from_topk(np.argsort(drawn, axis=2)[:, :, : what.top_k], what.num_experts, steps=steps)
