"""What `replay` judges: a placement file on all tokens, or plans made from one half of them on the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dispatch.rules import checked_rule
from ..errors import mismatch
from ..observe.judging import judge_draws, judge_steps, recorded_steps
from ..placement import Placement
from ..plan_types import Plan, PlanOptions
from ..planning.checks import checked_policy
from ..planning.plan import plan
from ..planning.planner import plan_of
from ..planning.score import LayerScores
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import judged


@dataclass(frozen=True)
class Run:
    name: str
    scores: LayerScores

    @property
    def figures(self) -> judged.Figures:
        return judged.figures(self.scores)


@dataclass(frozen=True)
class Judging:
    """What is judged, and by how many draws of source ranks. step_tokens: of a step; None: windows alone."""

    trace: Path
    window: RoutingStatistics
    topology: Topology
    dispatch: str
    step_tokens: int | None
    draws: int
    seed: int

    def of_file(self, placement: Placement, exact: bool) -> list[Run]:
        """On all tokens; of recorded single steps their loads, where tokens are not cut into steps."""
        found = f"layers {self.window.layer_ids.tolist()} × {self.window.num_experts} experts"
        expected = f"layers {placement.layer_ids.tolist()} × {placement.num_experts} experts"
        if found != expected:
            raise mismatch(str(self.trace), found=found, expected=expected, fix="pass trace and placement of one model")
        made = plan_of(placement, self.topology, checked_rule(self.dispatch))
        run = self._run("all tokens", _sample(self.trace, self.window, 1), made, exact)
        if self.step_tokens is None:
            run = replace(run, scores=replace(run.scores, step_balancedness=recorded_steps(self.window, made)))
        return [run]

    def of_halves(self, policy: str, num_groups: int, exact: bool) -> list[Run]:
        """Each half under the plan made from the other; exact: planned for it, from the loads of the half's steps."""
        rows = _sample(self.trace, self.window, 2)
        middle = rows.shape[1] // 2
        halves, runs = {"first": rows[:, :middle], "second": rows[:, middle:]}, []
        for known, unseen in (("first", "second"), ("second", "first")):
            steps = np.arange(halves[known].shape[1]) // (self.step_tokens or 1) if exact else None
            made = plan(
                RoutingStatistics.from_topk(halves[known], self.window.num_experts, self.window.layer_ids, steps=steps),
                self.topology, policy=checked_policy(policy), dispatch=checked_rule(self.dispatch),
                num_groups=num_groups, options=PlanOptions(exact=exact),
            )  # fmt: skip
            runs.append(self._run(f"{known} half → {unseen}", halves[unseen], made, exact))
        return runs

    def _run(self, name: str, rows: NDArray[Any], made: Plan, exact: bool) -> Run:
        if self.step_tokens is None:
            return Run(name, judge_draws(rows, made, self.draws, self.seed))
        scores = judge_steps(rows, made, self.step_tokens, self.draws, self.seed, exact=exact)
        return Run(f"{name}, exact" if exact else name, scores)


def summary(runs: list[Run]) -> dict[str, Any]:
    """As JSON: every run's figures, and their mean."""
    figures = [run.figures for run in runs]
    mean = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
    return {"runs": [{"run": run.name, **one} for run, one in zip(runs, figures, strict=True)], "mean": mean}


def _sample(trace: Path, window: RoutingStatistics, least: int) -> NDArray[np.int16]:
    """[L, T, K] rows that any layer filled, in their order."""
    rows = np.empty((window.num_layers, 0, 1), np.int16) if window.sample is None else window.sample
    rows = rows[:, (rows >= 0).any(axis=(0, 2))]
    if rows.shape[1] < least:
        expected = f"at least {least}"
        raise mismatch(f"{trace}: token rows", found=rows.shape[1], expected=expected, fix="record with a token sample")
    return rows
