"""A rebalance before vLLM's interval is over, in its own EplbState: on the same step on all ranks, and once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin.planning.score import balancedness, expected_rank_load
from processes import run_ranks

SECONDS = 300.0  # the planner may have to be compiled
INTERVAL, WINDOW = 60, 2
BOUNDS = {"windows": 2, "min_steps": 8, "when_balancedness_falls_by": 0.3}  # windows of 320 selections say little


@dataclass
class Seen:
    """Of one rank. begun: steps on which rebalances began; shifted: the step before which traffic changed.

    recorded: whether pairs are counted, as for a plan's window, by step. served: balancedness of the new traffic
    under the plans before and after.
    """

    begun: list[int] = field(default_factory=list)
    shifted: int = 0
    recorded: list[int] = field(default_factory=list)
    served: tuple[float, float] = (0.0, 0.0)


def serve(use_async: bool, rebalance: dict[str, Any]) -> Seen:
    from engines.vllm.eplb_models import EXPERTS, TOKENS, TOP_K, Engine

    class Shifting(Engine):
        """hot: [L, ...] the experts that all tokens choose among; at first their usual ones."""

        hot: list[np.ndarray] | None = None

        def routed(self, layer: int) -> np.ndarray:
            if self.hot is None:
                return super().routed(layer)
            return self.random.permuted(np.tile(self.hot[layer], (TOKENS, 1)), axis=1)[:, :TOP_K]

    engine, seen = Shifting(use_async, interval=INTERVAL, dispatch="weighted", rebalance=rebalance), Seen()
    entry, cycle = engine.adapter.rebalancer.entries["target"], engine.adapter.cycle

    def step() -> None:
        seen.recorded.append(int(entry.recorder.counting_pairs))
        engine.step()
        if engine.state.expert_rearrangement_step == 0:
            seen.begun.append(engine.steps)
        time.sleep(0.0 if cycle.settled("target") else 0.05)  # so that a rebalance is few steps long

    def until_settled(rebalances: int) -> None:
        while len(seen.begun) < rebalances or not cycle.settled("target"):
            step()

    until_settled(1)
    for _ in range(12):
        step()
    before, halves = entry.plan, np.split(engine.placed("target"), dist.get_world_size(), axis=1)
    engine.hot = [np.setdiff1d(first, other) for first, other in zip(*halves, strict=True)]
    seen.shifted = engine.steps + 1
    until_settled(2)
    for _ in range(30):
        step()
    load = np.array([np.isin(np.arange(EXPERTS), hot) for hot in engine.hot], np.float64)
    seen.served = tuple(balancedness(expected_rank_load(load, one)) for one in (before, entry.plan))
    return seen


@pytest.mark.parametrize("use_async", [True, False], ids=["async", "sync"])
def test_a_shift_is_answered_before_the_interval_ends(use_async: bool) -> None:
    """Two windows of the new traffic, a step for the switch, and a window for the plan; then ranks are even again."""
    first, other = run_ranks(2, serve, use_async, BOUNDS, timeout=SECONDS)
    assert first.begun == other.begun
    assert len(first.begun) == 2, "never again: traffic is as planned"
    begun = first.begun[1]
    assert begun - first.shifted < 4 * WINDOW + 1
    assert begun - first.begun[0] < INTERVAL
    assert first.recorded[begun - WINDOW - 1 : begun] == [0, *[1] * WINDOW], "a window with pairs, and no longer"
    assert first.recorded == other.recorded
    assert first.served[0] == 0.5
    assert first.served[1] > 0.8


def test_off_it_waits_for_the_interval() -> None:
    """when_balancedness_falls_by: 1."""
    for seen in run_ranks(2, serve, False, {**BOUNDS, "when_balancedness_falls_by": 1.0}, timeout=SECONDS):
        assert np.diff(seen.begun).tolist() == [INTERVAL]
