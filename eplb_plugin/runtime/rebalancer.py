"""The Rebalancer: from what was recorded to a placement that every rank agrees on.

Engines lend it process groups and a step tick; it never calls an engine. One Rebalancer serves one EP group and holds
one entry per model (a draft model is an entry of its own). Rank 0 of the group plans; the message to the others is a
plan or an error; all ranks vote on what they received. Anything but a unanimous yes keeps the old placement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from ..dispatch.exact.replicas import refuse_crowds
from ..errors import PluginError, mismatch
from ..placement import Placement
from ..plan_types import WEIGHED, Plan
from ..recording.load import Arrived, sum_load
from ..recording.snapshot import snapshot
from ..routing_rows import report_left_out
from ..settings.config import PluginConfig
from ..statistics import RoutingStatistics
from .agreement import agree, reason
from .drift import Drift
from .model_entry import ModelEntry
from .outcome import Outcome
from .proposal import options_for, propose, propose_weights
from .stage_timer import STALLED_SECONDS, Stage, StageTimer
from .state_directory import StateDirectory
from .warm_start import earlier
from .warm_up import warm_up
from .window_history import WindowHistory

logger = logging.getLogger("eplb_plugin")
SwitchWeights = Callable[[], None]
Staging = Callable[[Plan], SwitchWeights]


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
        entry.history = WindowHistory(self.config.forecast_windows)
        entry.drift = Drift(self.config.rebalance.when_balancedness_falls_by, self.config.rebalance.windows)
        entry.stages = StageTimer(lambda stage: self._stalled(entry, stage, planning_rank))
        if not planning_rank:
            return
        seconds = warm_up(entry.planned, options_for(entry, self.config), self.renews(entry))
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
        outcome: Outcome | None = None
        message: bytes | None = b""
        if dist.get_rank(group) == 0:
            self._keep_placement(entry, placed)
            with entry.stages("plan"):
                outcome, message = propose(entry, in_force, self.config)
        entry.rebalances += 1
        accepted, problem, _ = agree(
            message, in_force, group, partial(self._usable, entry, in_force), entry.stages("agree")
        )
        if outcome is not None:
            outcome = replace(outcome, seconds=entry.stages.taken(), expert_bytes=entry.expert_bytes)
        self.tell(outcome, refused=accepted is None)
        if accepted is None:
            line = "rebalance %d of %s refused, the old placement stays: %s"
            logger.error(line, entry.rebalances, entry.name, problem)
            return in_force
        entry.plan = accepted
        if outcome is not None and outcome.assessment is not None and self.renews(entry):
            entry.drift.planned(entry.history.expected_load().load, accepted)
        return accepted

    def _usable(self, entry: ModelEntry, in_force: Plan, made: Plan) -> Plan:
        """Raises PluginError for what `exact` could not serve by."""
        if self.config.exact is not None and entry.recorder is not None:
            refuse_crowds(in_force.placement.phy2log, made.placement.phy2log)
        return made

    def resplit(
        self, key: str, load: Arrived, group: dist.ProcessGroup, stage: Staging, may_begin: bool
    ) -> tuple[SwitchWeights | None, bool]:
        """Collective over `group`, a CPU group that no other thread uses: new weights where every expert stays.

        load: of the window that ended on this rank; needs a plan in force that has weights. stage: makes this rank's
        tables of a plan and touches nothing; what it raises is a refusal. may_begin: a rebalance may begin early.
        Returns what switches this rank to tables that all ranks have staged; None if one has not: the old ones stay.
        And whether a rebalance shall begin early, on all ranks alike.
        """
        entry = self.entries[key]
        in_force = entry.plan
        assert in_force is not None
        try:
            entry.history.add(sum_load(load(), group, entry.owner_group_size, entry.layer_ids))
        except PluginError as error:
            entry.history.refuse(error)
        outcome: Outcome | None = None
        message: bytes | None = b""
        if dist.get_rank(group) == 0:
            outcome, message = propose_weights(entry, in_force, self.config)
            if not may_begin:
                outcome = replace(outcome, shortfall=None)
        wish = outcome is not None and outcome.shortfall is not None
        staged, problem, early = agree(message, in_force, group, lambda made: _staged(made, in_force, stage), wish=wish)
        if outcome is not None and early and self.config.logging.rebalances:
            logger.info("rebalance of %s begins early: %s", entry.name, outcome.shortfall)
        self.tell(outcome, refused=staged is None)
        if staged is None:
            logger.error("re-split of %s refused, the old tables stay: %s", entry.name, problem)
            return None, early
        made, fill = staged

        def switch() -> None:
            entry.plan = made
            fill()

        return switch, early

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


def _staged(made: Plan, in_force: Plan, stage: Staging) -> tuple[Plan, SwitchWeights]:
    if not np.array_equal(made.placement.phy2log, in_force.placement.phy2log):
        raise mismatch("re-split", found="experts that move", expected="the placement in force", fix="report this")
    return made, stage(made)
