"""Is a move worth its time? Per layer: the time that the new row saves until the next rebalance, against its transfer.

    step_seconds = busiest rank's selections × seconds_per_selection
                 + copies sent to other nodes / ranks × token_bytes × 8 / (link_gbps × 10⁹)        both per forward step
    move_seconds = experts that the busiest receiver gets × expert_bytes × 8 / (link_gbps × 10⁹)

A layer moves only if horizon_steps × (step_seconds before - after) > move_seconds. All of it is predicted from the
statistics that the plan is made of; no later window is looked at.

The new row was fitted to these statistics and the old one was not, so that taken at their word they would flatter the
new one. The busiest rank is therefore the mean over draws of loads that deviate by `load_error`, the same draws for
both rows. A transfer is charged as if it went through the slow link and nothing could hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch
from ..placement import Placement
from ..plan_types import Plan, PlanOptions
from ..statistics import RoutingStatistics
from .moves.phases import parts_of
from .sample import knows_tokens, layer_tokens
from .score import count_routed, moved_slots, received_slots

DRAWS = 64  # of loads: the mean peak of 32 ranks is then known to about 0.3 %
Floats = NDArray[np.float64]


def skip_unpaid(
    kept: Plan, candidates: Iterable[Callable[[], Plan]], statistics: RoutingStatistics, options: PlanOptions
) -> Plan:
    """Per layer the first candidate whose move pays, else the row of `kept`, the placement in force.

    A later candidate is made only if a layer still waits for one.
    """
    before = step_seconds(kept, statistics, options)
    result, waiting = kept, None
    for make in candidates:
        made = make()
        moved = moved_slots(made.placement, kept.placement, made.topology) > 0
        waiting = moved if waiting is None else waiting  # what the first candidate leaves alone stays
        saved = before - step_seconds(made, statistics, options)
        pays = waiting & moved & (saved * (options.horizon_steps or 1.0) > move_seconds(made, kept, options))
        result, waiting = take_layers(pays, made, result), waiting & ~pays
        if not waiting.any():
            break
    return replace(result, skipped_layers=0 if waiting is None else int(waiting.sum()))


def step_seconds(plan: Plan, statistics: RoutingStatistics, options: PlanOptions) -> Floats:
    """[L] seconds per forward step that a layer spends on its busiest rank and on copies to other nodes.

    Copies are routed by the plan's rule from the statistics' tokens; without any they are taken not to change, hence 0.
    """
    seconds = np.zeros(statistics.num_layers)  # window_steps and horizon_steps left out: the window is one step
    if options.seconds_per_selection:
        seconds += busiest_rank(plan, statistics, options.load_error) * options.seconds_per_selection
    if options.token_bytes and knows_tokens(statistics):
        copies = crossing_copies(plan, statistics) / plan.topology.num_ranks
        seconds += copies * options.token_bytes * _seconds_per_byte(options)
    return seconds / (options.window_steps or 1.0)


def move_seconds(plan: Plan, kept: Plan, options: PlanOptions) -> Floats:
    """[L] seconds until the busiest receiver has every expert that `plan` gives it and `kept` did not."""
    received = received_slots(plan.placement, kept.placement, plan.topology).max(axis=1)
    return received * (options.expert_bytes or 0.0) * _seconds_per_byte(options)


def busiest_rank(plan: Plan, statistics: RoutingStatistics, load_error: float) -> Floats:
    """[L] selections of the window's busiest rank, or of those of its parts, added up; mean over loads that deviate by
    `load_error` (log-normal).
    """
    draws = DRAWS if load_error > 0.0 else 1
    normal = np.random.default_rng(0).standard_normal((draws, statistics.num_experts))
    factor = np.exp(load_error * normal - load_error**2 / 2.0)
    peak = np.zeros(statistics.num_layers)
    for layer, slots in enumerate(plan.placement.phy2log):
        for part in parts_of(statistics, layer):
            per_slot = (part * factor)[:, slots] * plan.replica_weights[layer]
            peak[layer] += per_slot.reshape(draws, plan.topology.num_ranks, -1).sum(axis=2).max(axis=1).mean()
    return peak


def crossing_copies(plan: Plan, statistics: RoutingStatistics) -> Floats:
    """[L] copies that the window's tokens send to other nodes: those of the known tokens, per selection."""
    copies = np.zeros(statistics.num_layers)
    for layer, load in enumerate(statistics.load):
        tokens, _ = layer_tokens(statistics, layer, plan.topology, plan.dispatch)
        selections = int((tokens.rows >= 0).sum())
        if selections:
            arriving = count_routed(tokens.rows, tokens.source, plan, layer)[2]
            copies[layer] = arriving.sum() / selections * float(load.sum())
    return copies


def take_layers(taken: NDArray[np.bool_], plan: Plan, other: Plan) -> Plan:
    """`plan` in the layers where taken: [L] bool, `other` in the rest."""

    def mixed(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
        return np.where(taken[:, None], ours, theirs)

    return replace(
        plan,
        placement=Placement(mixed(plan.placement.phy2log, other.placement.phy2log), plan.placement.layer_ids),
        replica_weights=mixed(plan.replica_weights, other.replica_weights),
        source_weights=_both(mixed, plan.source_weights, other.source_weights),
        cover_weights=_both(mixed, plan.cover_weights, other.cover_weights),
    )


def _both(mixed: Callable[..., NDArray[Any]], ours: NDArray[Any] | None, theirs: NDArray[Any] | None) -> Any:
    """Plans of one rule have the same weights, or neither has any."""
    return None if ours is None or theirs is None else mixed(ours, theirs)


def refuse_unknown_gain(statistics: RoutingStatistics, options: PlanOptions) -> None:
    """If time is saved by fewer copies alone, they must be known; else nothing would ever move, and nobody know why."""
    if options.is_priced and not options.seconds_per_selection and not knows_tokens(statistics):
        raise mismatch(
            "price of a move", found="token_bytes with load only", expected="co-activation or a token sample",
            fix="record one, or pass seconds_per_selection",
        )  # fmt: skip


def _seconds_per_byte(options: PlanOptions) -> float:
    return 8.0 / ((options.link_gbps or np.inf) * 1e9)
