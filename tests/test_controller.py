"""The Rebalancer over several processes: one placement for all, or the old one for all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin import consensus, controller, stages
from eplb_plugin.config import PluginConfig, parse_config
from eplb_plugin.controller import Rebalancer
from eplb_plugin.errors import PluginError
from eplb_plugin.model_entry import ModelEntry
from eplb_plugin.outcome import Outcome
from eplb_plugin.placement import Placement, linear_placement
from eplb_plugin.plan_message import encode
from eplb_plugin.plan_types import Plan, Policy
from eplb_plugin.planning.job import plan_of
from eplb_plugin.planning.score import balancedness
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.topology import Topology
from processes import run_ranks

LAYERS, EXPERTS, SLOTS, TOP_K, TOKENS = 2, 16, 24, 2, 96
LAYER_IDS = [1, 2]
OLD = linear_placement(LAYERS, EXPERTS, SLOTS).phy2log
POPULARITY = 1.0 / np.arange(1, EXPERTS + 1)  # expert 0 is the busiest by far

Result = tuple[np.ndarray, list[tuple[str, str]]]


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def new_entry(policy: Policy = "affinity", draft: bool = False) -> ModelEntry:
    ranks = dist.get_world_size()
    topology = Topology(2, ranks // 2, SLOTS // ranks)
    recorder = None if draft else Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 256, torch.device("cpu"))
    return ModelEntry("model", topology, policy, "hash", EXPERTS, 1, LAYER_IDS, recorder, expert_bytes=1000)


def routed(rank: int) -> list[np.ndarray]:
    """What a rank's tokens select: per layer [tokens, k]."""
    random = np.random.default_rng(rank)
    noise = [random.exponential(size=(TOKENS, EXPERTS)) / np.roll(POPULARITY, layer) for layer in range(LAYERS)]
    return [np.argsort(one, axis=1)[:, :TOP_K].copy() for one in noise]


def record(entry: ModelEntry, tokens: int = TOKENS) -> None:
    assert entry.recorder is not None
    entry.recorder.expect([tokens])
    for layer, ids in enumerate(routed(dist.get_rank())):
        entry.recorder.stage_rows(layer, torch.from_numpy(ids), torch.tensor(tokens, dtype=torch.int32))
    entry.recorder.fold()


def rebalance(
    spoil: Callable[[int], None] | None = None,
    tokens: int = TOKENS,
    policy: Policy = "affinity",
    config: PluginConfig | None = None,
) -> Result:
    """On every rank: record, optionally spoil something, decide; the placement and what was logged."""
    rank, log = dist.get_rank(), Log()
    rebalancer, entry = Rebalancer(config or PluginConfig()), new_entry(policy)
    rebalancer.add("key", entry, planning_rank=rank == 0)
    logger = logging.getLogger("eplb_plugin")
    logger.addHandler(log)
    logger.setLevel("INFO")
    record(entry, tokens)
    if spoil is not None:
        spoil(rank)
    rebalancer.observe("key", dist.group.WORLD)
    log.lines.clear()  # what `add` said
    plan = rebalancer.decide("key", OLD.copy(), dist.group.WORLD)
    return plan.placement.phy2log, log.lines


def all_keep_the_old(results: list[Result]) -> list[str]:
    """Asserts that no rank moved and that each logged one error line; returns those."""
    errors = []
    for placed, lines in results:
        np.testing.assert_array_equal(placed, OLD)
        found = [text for level, text in lines if level == "ERROR"]
        assert len(found) == 1
        assert found[0].startswith("rebalance 1 of model refused, the old placement stays: ")
        assert len(found[0].splitlines()) == 1
        errors.append(found[0])
    return errors


def rank_balance(load: np.ndarray, phy2log: np.ndarray, ranks: int) -> float:
    placement = Placement(phy2log)
    share = load / placement.replica_count
    return balancedness(np.take_along_axis(share, phy2log.astype(np.int64), 1).reshape(LAYERS, ranks, -1).sum(2))


# one placement for all


@pytest.mark.parametrize(("ranks", "policy"), [(2, "affinity"), (4, "affinity"), (2, "balanced"), (2, "deepseek")])
def test_all_ranks_get_the_same_placement(ranks: int, policy: Policy) -> None:
    """Rank 0 plans; every rank returns its placement: valid, another one, better balanced on the window."""
    results = run_ranks(ranks, rebalance, None, TOKENS, policy, timeout=300)
    first = results[0][0]
    for placed, lines in results:
        np.testing.assert_array_equal(placed, first)
        assert not [text for level, text in lines if level in ("ERROR", "WARNING")]
    assert Placement(first).num_experts == EXPERTS
    assert (first != OLD).any()
    per_layer = zip(*(routed(rank) for rank in range(ranks)), strict=True)
    load = np.stack([np.bincount(np.concatenate(ids).ravel(), minlength=EXPERTS) for ids in per_layer])
    assert rank_balance(load, first, ranks) > rank_balance(load, OLD, ranks)


def test_one_line_is_logged_by_the_planning_rank() -> None:
    """A rebalance is one line: balance before and after, copies between nodes, slots moved, time."""
    results = run_ranks(2, rebalance, timeout=300)
    (line,) = [text for level, text in results[0][1] if level == "INFO"]
    assert line.startswith("rebalance 1 of model: planned balancedness 0.")
    assert "cross-node copies/token" in line
    assert f"of {LAYERS * SLOTS} slots move, planned in" in line
    assert results[1][1] == []


def introduce() -> list[tuple[str, str]]:
    log, rebalancer = Log(), Rebalancer(PluginConfig())
    logger = logging.getLogger("eplb_plugin")
    logger.addHandler(log)
    logger.setLevel("INFO")
    for key in ("target", "draft"):
        rebalancer.add(key, new_entry("balanced"), planning_rank=dist.get_rank() == 0)
    return log.lines


def test_the_planning_rank_says_what_it_will_plan() -> None:
    """The settings once, and a line for every model, with its layout and the rule that the plan assumes."""
    lines, others = run_ranks(2, introduce, timeout=300)
    assert others == []
    settings, *models = [text for _, text in lines]
    assert settings.startswith('settings: {"policy":"affinity"')
    assert len(models) == 2
    assert models[0].startswith(f"model: {LAYERS} MoE layers, {EXPERTS} experts in {SLOTS} slots on 2 nodes x 1")
    assert "policy balanced, dispatch hash, token-owner groups of 1, " in models[0]


def rebalance_quietly() -> Result:
    return rebalance(config=parse_config({"logging": {"rebalances": False}}, ""))


def test_rebalances_need_not_be_logged() -> None:
    """logging.rebalances: false leaves the line out."""
    results = run_ranks(2, rebalance_quietly, timeout=300)
    assert [lines for _, lines in results] == [[], []]
    assert (results[0][0] != OLD).any()


def rebalance_in_budget() -> Result:
    return rebalance(config=parse_config({"budget": {"max_moved_slots": 2}}, ""))


def test_budget_reaches_the_planner() -> None:
    """No more slots per layer get another expert than the settings allow."""
    for placed, _ in run_ranks(2, rebalance_in_budget, timeout=300):
        assert ((placed != OLD).sum(1) <= 2).all()
        assert (placed != OLD).any()


DEAR = {"link_gbps": 1e-3, "seconds_per_selection": 1e-9}
CHEAP = {"link_gbps": 1e6, "seconds_per_selection": 1.0}


@pytest.mark.parametrize(("price", "moves"), [(DEAR, False), (CHEAP, True)])
def test_a_move_that_does_not_pay_is_not_made(price: dict[str, float], moves: bool) -> None:
    """With a price in the settings, the placement stays where its transfer costs more than it saves, and says so."""
    placed, lines = run_ranks(2, rebalance_at, price, timeout=300)[0]
    assert (placed != OLD).any() == moves
    (line,) = [text for level, text in lines if level == "INFO"]
    assert ("would not pay" in line) != moves


def rebalance_at(price: dict[str, float]) -> Result:
    return rebalance(config=parse_config({"price": price}, ""))


def test_no_tokens_keeps_the_old() -> None:
    """A window without a token changes nothing and is no error."""
    results = run_ranks(2, rebalance, None, 0, timeout=300)
    for placed, lines in results:
        np.testing.assert_array_equal(placed, OLD)
        assert not [text for level, text in lines if level == "ERROR"]
    assert results[0][1] == [("INFO", "rebalance of model skipped: no token was routed in the window")]


def rebalance_draft() -> np.ndarray:
    rebalancer, entry = Rebalancer(PluginConfig()), new_entry("balanced", draft=True)
    rebalancer.add("draft", entry, planning_rank=dist.get_rank() == 0)
    rebalancer.observe("draft", dist.group.WORLD)  # nothing is recorded for a draft
    load = np.stack([np.roll(POPULARITY, layer) * 1000 for layer in range(LAYERS)]).astype(np.int64)
    return rebalancer.decide("draft", OLD.copy(), dist.group.WORLD, load).placement.phy2log


def test_draft_is_planned_by_load() -> None:
    """A draft model has no recorder: the engine's load counts are enough to balance it."""
    placements = run_ranks(2, rebalance_draft, timeout=300)
    np.testing.assert_array_equal(*placements)
    load = np.stack([np.roll(POPULARITY, layer) for layer in range(LAYERS)])
    assert rank_balance(load, placements[0], 2) > max(0.9, rank_balance(load, OLD, 2))


def rebalance_many_windows() -> list[np.ndarray]:
    config = PluginConfig(forecast_windows=1)  # equal windows: a forecast would thin out the same tokens
    rebalancer, entry = Rebalancer(config), new_entry()
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    placements = [OLD]
    for _ in range(4):
        record(entry)
        rebalancer.observe("key", dist.group.WORLD)
        placements.append(rebalancer.decide("key", placements[-1], dist.group.WORLD).placement.phy2log)
    return placements


def test_windows_follow_one_another() -> None:
    """Each window starts from the placement of the last; equal routing soon moves nothing any more."""
    first, second = run_ranks(2, rebalance_many_windows, timeout=300)
    np.testing.assert_array_equal(first, second)
    moved = [(now != before).sum() for before, now in pairwise(first)]
    assert moved[0] > 0
    assert moved[-1] <= moved[0] // 2


def rebalance_and_report(spoil: Callable[[int], None] | None = None) -> list[tuple[str, bool]]:
    """On every rank: the results that were reported, and whether a plan was assessed."""
    told: list[tuple[str, bool]] = []
    rebalancer, entry = (
        Rebalancer(PluginConfig(), lambda outcome: told.append((outcome.result, bool(outcome.assessment)))),
        new_entry(),
    )
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    for tokens in (0, TOKENS):
        record(entry, tokens)
        if spoil is not None and tokens:
            spoil(dist.get_rank())
        rebalancer.observe("key", dist.group.WORLD)
        rebalancer.decide("key", OLD.copy(), dist.group.WORLD)
    return told


def test_outcomes_are_reported_on_the_planning_rank() -> None:
    """Skipped, accepted; and refused where another rank refused or planning failed."""
    assert run_ranks(2, rebalance_and_report, timeout=300) == [[("skipped", False), ("accepted", True)], []]
    spoilt = run_ranks(2, rebalance_and_report, flipped_body, timeout=300)
    assert spoilt == [[("skipped", False), ("refused", True)], []]
    failed = run_ranks(2, rebalance_and_report, plan_crashes, timeout=300)
    assert failed == [[("skipped", False), ("refused", False)], []]


def late(rank: int) -> None:
    """Rank 1 comes long after the others wait for it."""
    if rank == 0:
        stages.STALLED_SECONDS = 0.3
    else:
        time.sleep(2.0)


def test_waiting_for_a_rank_is_reported_while_it_lasts() -> None:
    """On the planning rank; the rebalance goes on when the rank comes."""
    told, others = run_ranks(2, rebalance_and_report, late, timeout=300)
    assert ("stalled", False) in told
    assert [one for one in told if one[0] != "stalled"] == [("skipped", False), ("accepted", True)]
    assert others == []


def rebalance_to_deaf_ears() -> Result:
    def fail(_: object) -> None:
        raise OSError("no space left on device")

    log = Log()
    logging.getLogger("eplb_plugin").addHandler(log)
    rebalancer, entry = Rebalancer(PluginConfig(), fail), new_entry()
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    record(entry)
    rebalancer.observe("key", dist.group.WORLD)
    return rebalancer.decide("key", OLD.copy(), dist.group.WORLD).placement.phy2log, log.lines


def test_a_report_that_fails_parts_no_ranks() -> None:
    """All ranks still move to the new plan; one line says what failed."""
    (first, lines), (second, _) = run_ranks(2, rebalance_to_deaf_ears, timeout=300)
    np.testing.assert_array_equal(first, second)
    assert (first != OLD).any()
    warnings = [text for level, text in lines if level == "WARNING"]
    assert warnings == ["the outcome of a rebalance was not reported: OSError: no space left on device"]


# or the old one for all


def plan_refuses(rank: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PluginError("load: found nothing, expected something; fix: this")

    controller.plan = refuse  # type: ignore[assignment]


def plan_crashes(rank: int) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    controller.plan = crash  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(plan_refuses, "load: found nothing"), (plan_crashes, "ZeroDivisionError: first line second line")],
)
def test_planner_that_raises(spoil: Callable[[int], None], reason: str) -> None:
    """Whatever the planner raises reaches every rank as one error line, and all keep the old placement."""
    for error in all_keep_the_old(run_ranks(2, rebalance, spoil, timeout=300)):
        assert f"planning failed: {reason}" in error


def receive_wrongly(change: Callable[[bytes], bytes], rank: int) -> None:
    """The last rank receives something else than was sent."""
    if rank == dist.get_world_size() - 1:
        broadcast = consensus.broadcast
        consensus.broadcast = lambda *args: change(broadcast(*args))  # type: ignore[assignment]


def flipped_body(rank: int) -> None:
    receive_wrongly(lambda message: message[:-1] + bytes([message[-1] ^ 1]), rank)


def truncated(rank: int) -> None:
    receive_wrongly(lambda message: message[:-8], rank)


def cut_header(rank: int) -> None:
    receive_wrongly(lambda message: message[:10], rank)


def nothing(rank: int) -> None:
    receive_wrongly(lambda message: b"", rank)


def noise(rank: int) -> None:
    receive_wrongly(lambda message: bytes(range(256)), rank)


@pytest.mark.parametrize(
    ("ranks", "spoil"),
    [(2, flipped_body), (4, flipped_body), (2, truncated), (2, cut_header), (2, nothing), (2, noise)],
)
def test_damaged_message_on_one_rank(ranks: int, spoil: Callable[[int], None]) -> None:
    """One rank that did not get what was sent is enough for all to keep the old placement; the others say so."""
    errors = all_keep_the_old(run_ranks(ranks, rebalance, spoil, timeout=300))
    assert all(error.endswith("another rank did not accept the plan") for error in errors[:-1])
    assert not errors[-1].endswith("another rank did not accept the plan")


def evenly(slots: int, experts: int) -> Plan:
    return plan_of(linear_placement(LAYERS, experts, slots), Topology(2, 1, slots // 2), "hash")


def proposed(plan: Plan) -> tuple[Outcome, bytes]:
    return Outcome("model", "accepted"), encode(plan)


def propose_other_shape(rank: int) -> None:
    controller.Rebalancer._propose = lambda *_: proposed(evenly(SLOTS + 2, EXPERTS))  # type: ignore[method-assign]


def propose_fewer_experts(rank: int) -> None:
    controller.Rebalancer._propose = lambda *_: proposed(evenly(SLOTS, EXPERTS - 1))  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(propose_other_shape, "plan: found phy2log [2, 26]"), (propose_fewer_experts, "found 15 experts")],
)
def test_plan_that_does_not_fit(spoil: Callable[[int], None], reason: str) -> None:
    """A whole message with a placement for other slots or experts is refused by every rank."""
    for error in all_keep_the_old(run_ranks(2, rebalance, spoil, timeout=300)):
        assert reason in error


def unequal_owners(rank: int) -> None:
    snapshot = controller.snapshot
    controller.snapshot = lambda recorder, group, _, layer_ids: snapshot(recorder, group, 2, layer_ids)


def test_refused_snapshot_reaches_every_rank() -> None:
    """What rank 0 finds wrong with a window every rank logs, and all keep the old placement."""
    for error in all_keep_the_old(run_ranks(2, rebalance, unequal_owners, timeout=300)):
        assert "planning failed: token-owner group 0: found ranks that recorded different routing" in error
