"""Compiling whatever planning calls before a server serves: later, a rebalance would wait for it, for 16 s a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .model_entry import ModelEntry
from .outcome import assess
from .placement import Placement
from .plan_message import accept, encode
from .plan_types import Plan, PlanOptions
from .planning.job import plan_of
from .planning.resplit import resplit
from .statistics import RoutingStatistics

Planner = Callable[[ModelEntry, RoutingStatistics, Plan, PlanOptions], Plan]
TOKENS = 64


def warm_up(entry: ModelEntry, planner: Planner, options: PlanOptions, renews: bool) -> float:
    """Go through rebalances of one layer's made-up traffic as `controller.py` does; returns the seconds it took.

    First from a placement, with a target that is never met, so that every way to improve it is tried; then from the
    plan that came of it, with the weights that it has after its travel. renews: whether weights are solved in between.
    """
    began, entry = time.perf_counter(), replace(entry, layer_ids=[0])
    statistics, slots = _made_up(entry), np.arange(entry.topology.num_slots, dtype=np.int32)
    in_force = plan_of(Placement(slots[None] % entry.num_experts), entry.topology, entry.dispatch)
    for one in (replace(options, balance_tolerance=0.0), options):
        made = planner(entry, statistics, in_force, one)
        assess(statistics, in_force, made)
        in_force = accept(encode(made), in_force)
    if renews:
        resplit(in_force, replace(statistics, coactivation=None, sample=None))
    return time.perf_counter() - began


def _made_up(entry: ModelEntry) -> RoutingStatistics:
    """Tokens, or loads where none are recorded, that prefer experts with low ids, then those with high ones: even ones
    leave nothing to do, and neither do parts that are alike."""
    wanted = 1.0 / np.arange(1, entry.num_experts + 1)
    return _window(entry, wanted).merge(_window(entry, wanted[::-1]))


def _window(entry: ModelEntry, wanted: NDArray[np.float64]) -> RoutingStatistics:
    if entry.recorder is None:
        return RoutingStatistics(np.rint(TOKENS * wanted)[None])
    drawn = np.random.default_rng(0).exponential(size=(1, TOKENS, entry.num_experts)) / wanted
    rows = np.argsort(drawn, axis=2)[:, :, : entry.recorder.sample.shape[2]]
    return RoutingStatistics.from_topk(rows, entry.num_experts)
