"""The Rebalancer: from what was recorded to a placement that every rank agrees on.

Engines lend it process groups and a step tick; it never calls an engine. One Rebalancer serves one EP group and holds
one entry per model (a draft model is an entry of its own). Rank 0 of the group plans; the message to the others is a
plan or an error; all ranks vote on what they received. Anything but a unanimous yes keeps the old placement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from .config import PluginConfig
from .consensus import agree, reason
from .errors import PluginError, mismatch
from .history import History
from .model_entry import ModelEntry
from .outcome import Outcome, Served, assess
from .placement import Placement
from .plan_message import encode, encode_error
from .plan_types import WEIGHED, Plan, PlanOptions
from .planning.job import plan_of
from .planning.plan import make_plan as plan
from .planning.resplit import resplit
from .planning.score import expected_rank_load
from .recording.load import Arrived, sum_load
from .recording.snapshot import snapshot
from .routing_rows import report_left_out
from .stages import STALLED_SECONDS, Stage, Stages
from .state import StateDirectory
from .statistics import RoutingStatistics
from .warm_start import earlier
from .warm_up import warm_up

logger = logging.getLogger("eplb_plugin")
Switch = Callable[[], None]
Staging = Callable[[Plan], Switch]


class Rebalancer:
    """Snapshot → plan → broadcast → vote, for the models of one EP group."""

    def __init__(self, config: PluginConfig, report: Callable[[Outcome], None] | None = None) -> None:
        """report: called on the planning rank with the outcome of every rebalance and re-split."""
        self.config, self._report = config, report
        self.entries: dict[str, ModelEntry] = {}
        self._state = None if config.state_directory is None else StateDirectory(config.state_directory)

    def add(self, key: str, entry: ModelEntry, planning_rank: bool) -> None:
        """Register a model. On the planning rank, compile the planner now, so that no rebalance waits for it."""
        self.entries[key] = entry
        entry.history = History(self.config.forecast_windows)
        entry.stages = Stages(lambda stage: self._stalled(entry, stage, planning_rank))
        if not planning_rank:
            return
        seconds = warm_up(entry.planned, self._options(entry), self.renews(entry))
        if len(self.entries) == 1:
            logger.info("settings: %s", self.config.model_dump_json())
        logger.info("%s", entry.introduction(seconds))

    def renews(self, entry: ModelEntry) -> bool:
        """Whether a model's weights are solved again between rebalances."""
        has_weights = entry.dispatch in WEIGHED and entry.recorder is not None
        return has_weights and 0 < self.config.resplit_windows * entry.window_steps < entry.step_interval

    def resume(self, key: str, group: dist.ProcessGroup) -> bool:
        """Collective over a CPU group: the first rebalance moves to where an earlier run ended, or to the placement
        that the user names. False, on every rank, if there is none. Raises PluginError if the named one does not fit.
        """
        entry = self.entries[key]
        found = earlier(self.config, entry.deployment, group, draft=entry.recorder is None)
        entry.first = found.placement
        self.recall(key, found.window)
        return found.placement is not None

    def recall(self, key: str, window: RoutingStatistics | None) -> None:
        """A window of an earlier run is the oldest of this one's; not if it is of other layers."""
        entry = self.entries[key]
        if window is not None and window.layer_ids.tolist() == entry.layer_ids:
            entry.history.add(window)

    def rehearse(self, key: str, group: dist.ProcessGroup) -> None:
        """Collective over the EP group, before an engine gives the memory away that is left: a snapshot of nothing."""
        entry = self.entries[key]
        if entry.recorder is not None:
            snapshot(entry.recorder, group, entry.owner_group_size, entry.layer_ids)

    def observe(self, key: str, group: dist.ProcessGroup) -> None:
        """Collective over the EP group: take the snapshot of the window that just ended."""
        entry = self.entries[key]
        if entry.recorder is None:
            return
        try:
            with entry.stages("snapshot"):
                window = snapshot(entry.recorder, group, entry.owner_group_size, entry.layer_ids)
        except PluginError as error:  # on the planning rank, from whose message the others learn of it, or on all
            entry.history.refuse(error)
            return
        if window is not None:
            left_out, counted = int(window.left_out.sum()), int(window.num_tokens.sum())
            report_left_out(f"window of {entry.name}", left_out, left_out + counted)
        if entry.first is None:  # else a few steps of an engine that has just started
            entry.history.add(window)
            self._keep_window(entry, window)

    def decide(
        self, key: str, previous: NDArray[Any], group: dist.ProcessGroup, load: NDArray[Any] | None = None
    ) -> Plan:
        """Collective over `group`, a CPU group that no other thread uses: the plan that all ranks will move to.

        previous: [L, P] the placement in force. load: [L, E], for an entry without a recorder.
        Returns the plan in force from now on, bit for bit the same on all ranks: the new one, or that of `previous` if
        planning failed or any rank received something else than was sent.
        """
        entry = self.entries[key]
        placed = Placement(previous, np.array(entry.layer_ids, np.int32))
        in_force = entry.in_force(placed)
        if load is not None and entry.first is None:
            window = RoutingStatistics(load, layer_ids=np.array(entry.layer_ids, np.int32))
            entry.history.add(window)
        outcome, message = None, b""
        if dist.get_rank(group) == 0:
            self._keep_placement(entry, placed)
            with entry.stages("plan"):
                outcome, message = self._propose(entry, in_force)
        entry.rebalances += 1
        accepted, problem = agree(message, in_force, group, lambda made: made, entry.stages("agree"))
        if outcome is not None:
            outcome = replace(outcome, seconds=entry.stages.taken(), expert_bytes=entry.expert_bytes)
        self.tell(outcome, refused=accepted is None)
        if accepted is None:
            line = "rebalance %d of %s refused, the old placement stays: %s"
            logger.error(line, entry.rebalances, entry.name, problem)
            return in_force
        entry.plan = accepted
        return accepted

    def resplit(self, key: str, load: Arrived, group: dist.ProcessGroup, stage: Staging) -> Switch | None:
        """Collective over `group`, a CPU group that no other thread uses: new weights where every expert stays.

        load: of the window that ended on this rank; needs a plan in force that has weights. stage: makes this rank's
        tables of a plan and touches nothing; what it raises is a refusal.
        Returns what switches this rank to tables that all ranks have staged; None if one has not: the old ones stay.
        """
        entry = self.entries[key]
        in_force = entry.plan
        assert in_force is not None
        try:
            entry.history.add(sum_load(load(), group, entry.owner_group_size, entry.layer_ids))
        except PluginError as error:
            entry.history.refuse(error)
        outcome, message = self._propose_weights(entry, in_force) if dist.get_rank(group) == 0 else (None, b"")
        staged, problem = agree(message, in_force, group, lambda made: _staged(made, in_force, stage))
        self.tell(outcome, refused=staged is None)
        if staged is None:
            logger.error("re-split of %s refused, the old tables stay: %s", entry.name, problem)
            return None
        made, fill = staged

        def switch() -> None:
            entry.plan = made
            fill()

        return switch

    def _keep_window(self, entry: ModelEntry, window: RoutingStatistics | None) -> None:
        if self._state is not None and window is not None and window.load.any():
            self._state.keep_window(entry.deployment, window)

    def _keep_placement(self, entry: ModelEntry, placed: Placement) -> None:
        """One that was planned and has served: should the next move fail, a restart does not repeat it."""
        if self._state is not None and entry.plan is not None:
            self._state.keep_placement(entry.deployment, placed)

    def _stalled(self, entry: ModelEntry, stage: Stage, planning_rank: bool) -> None:
        line = "rebalance %d of %s: stage %s has lasted %.0f s and has not ended: has a rank ended, or a link failed?"
        logger.error(line, entry.rebalances + 1, entry.name, stage, STALLED_SECONDS)
        if planning_rank:
            self.tell(Outcome(entry.name, "stalled"))

    def tell(self, outcome: Outcome | None, refused: bool = False) -> None:
        """On the planning rank. A failure of who listens must not part this rank from the others, which go on."""
        if outcome is None or self._report is None:
            return
        try:
            self._report(replace(outcome, result="refused") if refused else outcome)
        except Exception as error:
            logger.warning("the outcome of a %s was not reported: %s", outcome.change, reason(error))

    def _propose(self, entry: ModelEntry, in_force: Plan) -> tuple[Outcome, bytes]:
        """On the planning rank: a plan, or the reason why there is none. Never raises: all ranks wait for it."""
        try:
            first, entry.first = entry.first, None
            if not entry.history.has_tokens:
                if first is not None:
                    return Outcome(entry.name, "accepted"), encode(plan_of(first, entry.topology, entry.dispatch))
                logger.info("rebalance of %s skipped: no token was routed in the window", entry.name)
                return Outcome(entry.name, "skipped"), encode(in_force)
            statistics, served = entry.history.expected(), None
            if first is not None:
                made = resplit(plan_of(first, entry.topology, entry.dispatch), statistics)
            else:
                served = self._served(entry, in_force)
                made = self._plan(entry, statistics, in_force, self._options(entry))
            assessment = assess(statistics, in_force, made)
            if self.config.logging.rebalances:
                logger.info("rebalance %d of %s: %s", entry.rebalances + 1, entry.name, assessment)
            return Outcome(entry.name, "accepted", assessment, served), encode(made)
        except Exception as error:  # whatever fails here must reach the other ranks, or they wait forever
            logger.debug("planning failed", exc_info=True)
            return Outcome(entry.name, "refused"), encode_error(f"planning failed: {reason(error)}")

    def _propose_weights(self, entry: ModelEntry, in_force: Plan) -> tuple[Outcome, bytes]:
        """The same for new weights: those for the next window's load, since the last one's alone is mostly noise."""
        try:
            if not entry.history.has_tokens:
                return Outcome(entry.name, "skipped", change="re-split"), encode(in_force)
            statistics = entry.history.expected_load()
            made = resplit(in_force, statistics)
            assessment = assess(statistics, in_force, made)
            if self.config.logging.rebalances:
                before, after = assessment.balancedness
                line = "re-split of %s: planned balancedness %.3f -> %.3f, solved in %.1f ms"
                logger.info(line, entry.name, before, after, made.seconds * 1e3)
            return Outcome(entry.name, "accepted", assessment, change="re-split"), encode(made)
        except Exception as error:  # as above
            logger.debug("solving weights failed", exc_info=True)
            return Outcome(entry.name, "refused", change="re-split"), encode_error(f"solving failed: {reason(error)}")

    def _served(self, entry: ModelEntry, in_force: Plan) -> Served:
        window = entry.history.newest
        left_out = window.left_out.sum() / max((window.left_out + window.num_tokens).sum(), 1)
        rank_load, layer_ids = expected_rank_load(window.load, in_force), in_force.placement.layer_ids
        return Served(rank_load, layer_ids, self.config.metrics.per_layer_rank, float(left_out))

    def _options(self, entry: ModelEntry) -> PlanOptions:
        """With the price of a move, where the settings name one and the entry's gain can be told."""
        price, rounds = self.config.price, self.config.peo_rounds(entry.topology.slots_per_rank)
        options = replace(self.config.plan_options, peo_rounds=rounds)
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

    def _plan(self, entry: ModelEntry, statistics: RoutingStatistics, in_force: Plan, options: PlanOptions) -> Plan:
        return plan(
            statistics,
            entry.topology,
            policy=entry.policy,
            previous=in_force,
            dispatch=entry.dispatch,
            num_groups=entry.num_groups,
            options=options,
        )


def _staged(made: Plan, in_force: Plan, stage: Staging) -> tuple[Plan, Switch]:
    if not np.array_equal(made.placement.phy2log, in_force.placement.phy2log):
        raise mismatch("re-split", found="experts that move", expected="the placement in force", fix="report this")
    return made, stage(made)
