"""A rebalance before SGLang's interval is over, with its own EPLBManager: at the same pass on all ranks, and once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eplb_plugin.planning.score import balancedness, expected_rank_load
from processes import run_ranks

from .schedulers import EXPERTS, MOE_LAYERS, TOP_K, Scheduler, Start, model_folder

INTERVAL, WINDOW, TOKENS = 40, 2, 40
BOUNDS = {"windows": 2, "min_steps": 8, "when_balancedness_falls_by": 0.3}  # windows of 240 selections say little


@dataclass
class Seen:
    """Of one rank. begun: passes at whose end rebalances began; over: when they were; shifted: the pass from which
    traffic is another; recorded: whether a pass counts pairs. served: balancedness of the new traffic under the plans
    before and after.
    """

    begun: list[int] = field(default_factory=list)
    over: list[int] = field(default_factory=list)
    shifted: int = 0
    recorded: list[bool] = field(default_factory=list)
    served: tuple[float, float] = (0.0, 0.0)
    weights_right: bool = True


def serve(start: Start) -> Seen:
    """Up to the end of the interval that follows the early rebalance: that one lasts as long as any."""
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler, seen, random = Scheduler(start), Seen(), np.random.default_rng(5)
    adapter = get_adapter()
    entry = adapter.rebalancer.entries["target"]
    hot = [np.arange(EXPERTS) for _ in MOE_LAYERS]

    def forward() -> None:
        chosen = [random.permuted(np.tile(experts, (TOKENS, 1)), axis=1)[:, :TOP_K] for experts in hot]
        rebalancing = adapter._rebalancing
        seen.recorded.append(bool(entry.recorder.counting_pairs) and not rebalancing)
        scheduler.forward(np.stack(chosen))
        here = len(seen.recorded)
        if adapter._rebalancing and not rebalancing:
            seen.begun.append(here)
        if rebalancing and not adapter._rebalancing:
            seen.over.append(here)
        seen.weights_right &= scheduler.weights_are_right()
        time.sleep(0.02 if adapter._rebalancing else 0.0)  # so that a rebalance is few passes long

    while not seen.over:
        forward()
    for _ in range(12):
        forward()
    before = entry.plan
    halves = np.split(before.placement.phy2log, 2, axis=1)
    hot = [np.setdiff1d(first, other) for first, other in zip(*halves, strict=True)]
    seen.shifted = len(seen.recorded) + 1
    while len(seen.over) < 3:
        forward()
    load = np.array([np.isin(np.arange(EXPERTS), one) for one in hot], np.float64)
    seen.served = tuple(balancedness(expected_rank_load(load, one)) for one in (before, entry.plan))
    return seen


def test_a_shift_is_answered_before_the_interval_ends(tmp_path: Path) -> None:
    """Two windows of the new traffic, a pass for the switch, and a window for the plan; then ranks are even again, and
    the next rebalance comes an interval later.
    """
    settings = {"window_size": WINDOW, "rebalance": BOUNDS}
    start = Start(model_folder(tmp_path), [settings] * 2, {"eplb_rebalance_num_iterations": INTERVAL})
    first, other = run_ranks(2, serve, start, timeout=300)
    assert (first.begun, first.over) == (other.begun, other.over)
    begun = first.begun[1]
    assert begun - first.shifted < 4 * WINDOW + 1
    assert first.recorded[begun - WINDOW - 1 : begun] == [False, *[True] * WINDOW], "a window with pairs, and no longer"
    assert first.begun[2] - first.over[1] == INTERVAL
    assert first.weights_right
    assert other.weights_right
    assert first.served[0] == 0.5
    assert first.served[1] > 0.8
