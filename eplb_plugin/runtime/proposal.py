"""What the planning rank proposes to the others: a plan, or new weights, for the window that will follow.

Each proposal is what is reported of it, and the message that all ranks will vote on: a plan, or the reason why there is
none; or KEEP, without a vote. Nothing here raises: all ranks wait for the message.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from ..plan_types import WEIGHED, Plan, PlanOptions
from ..planning.planner import plan_of
from ..planning.resplit import resplit
from ..planning.score import expected_rank_load
from ..planning.step_balance import loads_by_shares, reached_by_quotas, step_balancedness
from ..settings.config import PluginConfig
from .agreement import KEEP, reason
from .model_entry import ModelEntry
from .outcome import Outcome, Served, assess
from .plan_codec import encode, encode_error
from .warm_up import plan_for

logger = logging.getLogger("eplb_plugin")
Proposal = tuple[Outcome, bytes | None]


def propose(entry: ModelEntry, in_force: Plan, config: PluginConfig) -> Proposal:
    """Where experts will lie. in_force: where they lie, and how they are used."""
    try:
        first, entry.first = entry.first, None
        if not entry.history.has_tokens:
            if first is not None:
                return Outcome(entry.name, "accepted"), encode(plan_of(first, entry.topology, entry.dispatch))
            logger.info("rebalance of %s skipped: no token was routed in the window", entry.name)
            return Outcome(entry.name, "skipped"), KEEP
        options, served = options_for(entry, config), None
        statistics = entry.history.expected(_reads_pairs(entry, options))
        if first is not None:
            made = resplit(plan_of(first, entry.topology, entry.dispatch), statistics)
        else:
            served = _served(entry, in_force, config)
            made = plan_for(entry.planned, statistics, in_force, options)
        assessment = assess(statistics, in_force, made)
        stays = not assessment.is_gain and _same_use(made, in_force)
        if config.logging.rebalances:
            note = ", too little to change anything" if stays else ""
            logger.info("rebalance %d of %s: %s%s", entry.rebalances + 1, entry.name, assessment, note)
        return Outcome(entry.name, "accepted", assessment, served), KEEP if stays else encode(made)
    except Exception as error:  # whatever fails here must reach the other ranks, or they wait forever
        logger.debug("planning failed", exc_info=True)
        return Outcome(entry.name, "refused"), encode_error(f"planning failed: {reason(error)}")


def _same_use(made: Plan, in_force: Plan) -> bool:
    """Whether every expert stays in its slot, and at most its share is another."""
    same = np.array_equal(made.placement.phy2log, in_force.placement.phy2log)
    return same and made.has_weights == in_force.has_weights


def propose_weights(entry: ModelEntry, in_force: Plan, config: PluginConfig) -> Proposal:
    """New weights where experts lie: those for the next window's load, since the last one's alone is mostly noise."""
    try:
        if not entry.history.has_tokens:
            return Outcome(entry.name, "skipped", change="re-split"), encode(in_force)
        statistics = entry.history.expected_load()
        shortfall = entry.drift.served(entry.history.newest.load, in_force)
        made = resplit(in_force, statistics)
        assessment = assess(statistics, in_force, made)
        if config.logging.rebalances:
            before, after = assessment.balancedness
            line = "re-split of %s: planned balancedness %.3f -> %.3f, solved in %.1f ms"
            logger.info(line, entry.name, before, after, made.seconds * 1e3)
        return Outcome(entry.name, "accepted", assessment, change="re-split", shortfall=shortfall), encode(made)
    except Exception as error:  # as above
        logger.debug("solving weights failed", exc_info=True)
        return Outcome(entry.name, "refused", change="re-split"), encode_error(f"solving failed: {reason(error)}")


def options_for(entry: ModelEntry, config: PluginConfig) -> PlanOptions:
    """With the price of a move, where the settings name one and the entry's gain can be told."""
    price, rounds = config.price, config.peo_rounds(entry.topology.slots_per_rank)
    options = replace(config.plan_options, peo_rounds=rounds)
    if entry.recorder is None:  # its loads are of windows, and its tokens take the tables in every step
        options = replace(options, exact=False)
    if price is None or (entry.recorder is None and not price.seconds_per_selection):
        return options
    return replace(
        options,
        load_error=entry.history.load_error() or options.load_error,
        expert_bytes=entry.expert_bytes,
        link_gbps=price.link_gbps,
        token_bytes=price.token_bytes,
        seconds_per_selection=price.seconds_per_selection,
        window_steps=entry.window_steps,
        horizon_steps=price.horizon_steps or entry.step_interval,
    )


def _reads_pairs(entry: ModelEntry, options: PlanOptions) -> bool:
    """Whether co-activation, whose forecast takes most of the time, decides anything that the sample does not."""
    several = entry.topology.num_nodes > 1
    return options.is_priced or (several and (entry.policy == "affinity" or entry.dispatch in WEIGHED))


def _served(entry: ModelEntry, in_force: Plan, config: PluginConfig) -> Served:
    window = entry.history.newest
    left_out = window.left_out.sum() / max((window.left_out + window.num_tokens).sum(), 1)
    rank_load, layer_ids = expected_rank_load(window.load, in_force), in_force.placement.layer_ids
    per_step = {}
    if window.steps is not None:
        per_step["tables"] = step_balancedness(loads_by_shares(window.steps, in_force))
        exact = None if config.exact is None else reached_by_quotas(window.steps, in_force)
        if exact is not None:
            per_step["exact"] = exact
    return Served(rank_load, layer_ids, config.metrics.per_layer_rank, float(left_out), per_step)
