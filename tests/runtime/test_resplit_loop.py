"""Weights between rebalances, over several processes: new tables on the same step for all, or the old ones for all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.score import judge
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime import agreement, proposal
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.outcome import Outcome
from eplb_plugin.runtime.rebalancer import Rebalancer, SwitchWeights
from eplb_plugin.runtime.resplit_loop import ResplitLoop
from eplb_plugin.settings.config import parse_config
from eplb_plugin.topology import Topology
from eplb_plugin.workloads.routing import ClusteredRouter
from processes import run_ranks
from recorded import route_layer

RANKS, LAYERS, EXPERTS, TOP_K, TOKENS = 2, 2, 32, 4, 400
TOPOLOGY = Topology(2, 1, 24)
WINDOW, INTERVAL = 4, 16
PLACED = np.tile(np.arange(48, dtype=np.int32) % EXPERTS, (LAYERS, 1))
ROUTER = ClusteredRouter(LAYERS, EXPERTS, TOP_K)
DRIFTED = ROUTER.drifted(0.8)


@dataclass
class Seen:
    """Of one rank. digests: of the plan in force, during every step after the first rebalance. begun: steps after which
    a rebalance begins early; held: selections that its window has by then."""

    digests: list[str] = field(default_factory=list)
    switched: list[int] = field(default_factory=list)
    staged_on: set[str] = field(default_factory=set)
    placed: list[np.ndarray] = field(default_factory=list)
    balance: list[float] = field(default_factory=list)
    told: list[Outcome] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


Spoil = Callable[[int], None]


def live(
    settings: dict[str, Any],
    spoil: Spoil | None = None,
    moving: tuple[int, ...] = (),
    empty: bool = False,
    lopsided: bool = False,
) -> Seen:
    """A rebalance from the router's traffic, then steps up to the next one with traffic that has drifted.

    lopsided: to experts of the first rank alone, in twice the steps.
    """
    interval = 2 * INTERVAL if lopsided else INTERVAL
    rank, seen = dist.get_rank(), Seen()
    log = logging.Handler()
    log.emit = lambda record: seen.lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("eplb_plugin")
    logger.addHandler(log)
    logger.setLevel("INFO")
    rebalancer = Rebalancer(parse_config({"policy": "balanced", **settings}, ""), seen.told.append)
    recorder = Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 256, torch.device("cpu"))
    entry = ModelEntry("model", TOPOLOGY, "balanced", "weighted", EXPERTS, 1, [1, 2], recorder)
    entry.window_steps, entry.step_interval = WINDOW, interval
    rebalancer.add("key", entry, planning_rank=rank == 0)
    assert rebalancer.renews(entry)
    record(recorder, ROUTER, 0)
    rebalancer.observe("key", dist.group.WORLD)
    rebalancer.decide("key", PLACED, dist.group.WORLD)
    drifted = Lopsided(entry.plan) if lopsided else DRIFTED
    seen.told.clear()
    seen.lines.clear()
    step = 0

    def stage(plan: Plan) -> SwitchWeights:
        seen.staged_on.add(threading.current_thread().name)
        return lambda: seen.switched.append(step)

    if spoil is not None:
        stage = spoil(rank) or stage
    resplitting = ResplitLoop(rebalancer, "key", dist.new_group(), stage)
    judged = DRIFTED.window(4000, 99)
    for step in range(interval):
        seen.digests.append(entry.plan.digest)
        seen.placed.append(entry.plan.placement.phy2log)
        seen.balance.append(judge(judged, np.arange(4000) % RANKS, entry.plan).balancedness)
        left = interval - step - 1
        if resplitting.records(left) and not empty:
            record(recorder, drifted, 10 + step)
        if resplitting.end_step(left, settled=step not in moving):
            seen.begun.append(step)
            seen.held.append(int(recorder.load.sum()))
    return seen


class Lopsided:
    """Tokens for the experts that the first rank alone holds, which no shares even out."""

    def __init__(self, plan: Plan) -> None:
        halves = np.split(plan.placement.phy2log, RANKS, axis=1)
        self._alone = [np.setdiff1d(first, other) for first, other in zip(*halves, strict=True)]

    def window(self, tokens: int, seed: int) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        return [random.permuted(np.tile(alone, (tokens, 1)), axis=1)[:, :TOP_K] for alone in self._alone]


def record(recorder: Recorder, router: ClusteredRouter | Lopsided, seed: int) -> None:
    recorder.expect([TOKENS])
    for layer, ids in enumerate(router.window(TOKENS, 100 * seed + dist.get_rank())):
        route_layer(recorder, layer, ids)
    recorder.fold()


ONE = {"forecast_windows": 1}


def test_all_ranks_switch_on_the_same_step() -> None:
    """At every window's end weights are solved in another thread, and in force half a window later, everywhere."""
    first, second = run_ranks(RANKS, live, ONE, timeout=300)
    assert first.digests == second.digests
    assert first.switched == second.switched == [5, 9, 13]
    changes = [step for step in range(1, INTERVAL) if first.digests[step] != first.digests[step - 1]]
    assert changes == [6, 10, 14]
    assert first.staged_on == {"eplb-plugin-resplit"}
    assert all(np.array_equal(one, first.placed[0]) for one in first.placed)
    assert [(one.change, one.result) for one in first.told] == [("re-split", "accepted")] * 3
    assert second.told == []
    assert len(first.lines) == 3
    assert first.lines[0].startswith("re-split of model: planned balancedness 0.")
    assert second.lines == []


def test_balance_rises_on_traffic_that_was_not_seen() -> None:
    """The placement is of the old traffic; weights of the new one even its ranks out on a later window."""
    seen = run_ranks(RANKS, live, ONE, timeout=300)[0]
    assert min(seen.balance[6:]) > max(seen.balance[:6]) + 0.01


def test_every_second_window() -> None:
    """resplit_windows: 2 leaves a window out, which is not recorded either."""
    for seen in run_ranks(RANKS, live, {**ONE, "resplit_windows": 2}, timeout=300):
        assert seen.switched == [11]


def test_deferred_while_experts_move() -> None:
    """A window that ends during a migration is let go; the weights follow with the next one."""
    for seen in run_ranks(RANKS, live, ONE, None, (3, 7), timeout=300):
        assert seen.switched == [13]


def test_a_window_without_tokens_changes_nothing() -> None:
    seen = run_ranks(RANKS, live, ONE, None, (), True, timeout=300)
    assert len(set(seen[0].digests)) == 1
    assert {one.result for one in seen[0].told} == {"skipped"}


def refusing_stage(rank: int) -> Any:
    def refuse(plan: Plan) -> SwitchWeights:
        raise PluginError("tables: found no memory, expected some; fix: free it")

    return refuse if rank == 1 else None


def solver_fails(rank: int) -> None:
    def fail(*_: Any) -> Plan:
        raise ZeroDivisionError("first line\nsecond line")

    proposal.resplit = fail


def damaged(rank: int) -> None:
    if rank == 1:
        broadcast = agreement.broadcast
        agreement.broadcast = lambda *args: (lambda sent: sent[:-1] + bytes([sent[-1] ^ 1]))(broadcast(*args))


def moves_experts(rank: int) -> None:
    def shuffled(plan: Plan, statistics: object) -> Plan:
        from dataclasses import replace

        return replace(plan, placement=replace(plan.placement, phy2log=plan.placement.phy2log[:, ::-1].copy()))

    proposal.resplit = shuffled


@pytest.mark.parametrize(
    ("spoil", "reasons"),
    [
        (refusing_stage, ("another rank did not accept the plan", "tables: found no memory")),
        (solver_fails, ("solving failed: ZeroDivisionError: first line second line",) * 2),
        (damaged, ("another rank did not accept the plan", "plan digest: found")),
        (moves_experts, ("re-split: found experts that move",) * 2),
    ],
)  # fmt: skip
def test_the_old_tables_stay(spoil: Spoil, reasons: tuple[str, str]) -> None:
    """One rank that could not is enough: no rank switches, each says why in one line, and serving goes on."""
    results = run_ranks(RANKS, live, ONE, spoil, timeout=300)
    for seen, reason in zip(results, reasons, strict=True):
        assert seen.switched == []
        assert len(set(seen.digests)) == 1
        errors = [line for line in seen.lines if "refused" in line]
        assert len(errors) == 3
        assert all(line.startswith(f"re-split of model refused, the old tables stay: {reason}") for line in errors)
    assert {one.result for one in results[0].told} == {"refused"}


def slow_rank(rank: int) -> Any:
    def slow(plan: Plan) -> SwitchWeights:
        time.sleep(0.5)
        return lambda: None

    return slow if rank == 1 else None


def test_a_slow_rank_is_waited_for() -> None:
    """The step on which all switch comes before a rank is ready: it waits, and no rank is ahead."""
    first, second = run_ranks(RANKS, live, ONE, slow_rank, timeout=300)
    assert first.digests == second.digests
    assert first.switched == [5, 9, 13]


def test_off_where_there_are_no_weights() -> None:
    """Rules whose copies have no weights, models without a recorder, windows that fill the interval, and 0."""
    recorder = Recorder(1, EXPERTS, TOP_K, 8, 256, torch.device("cpu"))

    def renews(rule: str = "weighted", recorder: Recorder | None = recorder, window: int = 4, every: int = 1) -> bool:
        entry = ModelEntry("m", TOPOLOGY, "balanced", rule, EXPERTS, 1, [0], recorder)  # type: ignore[arg-type]
        entry.window_steps, entry.step_interval = window, 8
        return Rebalancer(parse_config({"resplit_windows": every}, "")).renews(entry)

    assert renews()
    assert renews("cover")
    assert not any([renews("hash"), renews("nearest"), renews(recorder=None), renews(window=8), renews(every=0)])


def early(rebalance: dict[str, Any], spoil: Spoil | None = None, empty: bool = False) -> Seen:
    """In an interval of 8 windows, with traffic that the placement is not made for."""
    return live({**ONE, "rebalance": {"min_steps": 0, **rebalance}}, spoil, empty=empty, lopsided=True)


@pytest.mark.parametrize(
    ("rebalance", "begun"),
    [
        ({}, [9, 13, 17, 21, 25]),
        ({"windows": 1}, [5, 9, 13, 17, 21, 25]),
        ({"min_steps": 13}, [17, 21, 25]),
        ({"when_balancedness_falls_by": 1.0}, []),
    ],
)
def test_a_rebalance_begins_early(rebalance: dict[str, Any], begun: list[int]) -> None:
    """After so many windows that fall short, and steps, on all ranks with the switch of shares; not where its window
    begins no later by itself. (Here nothing comes of it, and windows go on.)"""
    first, second = run_ranks(RANKS, early, rebalance, timeout=300)
    assert first.begun == second.begun == begun
    lines = [line for line in first.lines if line.startswith("rebalance of model begins early: balancedness 0.")]
    assert len(lines) == len(begun)
    assert second.lines == []
    assert sum(one.shortfall is not None for one in first.told) == len(begun)
    assert first.held == [0] * len(begun), "its window has tokens of before"


def test_one_begins_early_also_where_shares_are_refused() -> None:
    """A rank without memory for new tables may need new experts all the more."""
    first, second = run_ranks(RANKS, early, {}, refusing_stage, timeout=300)
    assert first.begun == second.begun == [9, 13, 17, 21, 25]
    assert first.switched == second.switched == []


def test_empty_windows_begin_nothing() -> None:
    """An idle server stays as it is."""
    for seen in run_ranks(RANKS, early, {"windows": 1}, None, True, timeout=300):
        assert seen.begun == []
