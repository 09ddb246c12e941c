"""Compiling kernels ahead of their use, e.g. into a container image: all that plans, tables and moves call."""

from __future__ import annotations

import time

import numpy as np

from ..dispatch.cover import cover_maps
from ..dispatch.tables import weighted_tables
from ..migration.hops import hops, least_rows
from ..migration.schedule import schedule
from ..plan_types import WEIGHED, Dispatch, PlanOptions, Policy
from ..planning.plan import plan
from ..topology import Topology
from .warm_up import Planned, made_up, warm_up


def compile_for(policy: Policy, dispatch: Dispatch) -> float:
    """Compile, or find in the cache, what plans, tables and moves need; returns the seconds it took.

    Kernels depend on policy, dispatch, and whether there are several nodes; sizes are arguments to them.
    """
    began, options = time.perf_counter(), PlanOptions(peo_rounds=5)
    for topology in (Topology(2, 4, 5), Topology(1, 8, 5)):
        slots = np.arange(topology.num_slots, dtype=np.int32)[None]
        schedule(slots, np.roll(slots, 1), topology)
        hops(slots, np.roll(slots, 1), topology.slots_per_rank, [least_rows(topology.slots_per_rank)])
        what = Planned(topology, policy, dispatch, num_experts=32, num_groups=2, top_k=4)
        # as a command plans: it also compares with vanilla's placement, which servers leave out
        made = plan(made_up(what), topology, policy=policy, dispatch=dispatch, num_groups=2, options=options)
        if dispatch == "weighted":
            weighted_tables(made)
        if dispatch == "cover":
            cover_maps(made, [0])
        warm_up(what, options, dispatch in WEIGHED)
    return time.perf_counter() - began
