"""The Rebalancer over several processes: one placement for all."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin.dispatch.exact import replicas
from eplb_plugin.placement import Placement
from eplb_plugin.plan_types import Plan, PlanOptions, Policy
from eplb_plugin.planning.score import balancedness
from eplb_plugin.runtime import proposal, warm_up
from eplb_plugin.runtime.outcome import Outcome
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.runtime.warm_up import Planned
from eplb_plugin.settings.config import PluginConfig, parse_config
from eplb_plugin.statistics import RoutingStatistics
from processes import run_ranks
from rebalances import (
    EXPERTS,
    LAYERS,
    OLD,
    POPULARITY,
    SLOTS,
    TOKENS,
    TOP_K,
    Log,
    Result,
    new_entry,
    rebalance,
    record,
    routed,
)
from recorded import route_layer


def rank_balance(load: np.ndarray, phy2log: np.ndarray, ranks: int) -> float:
    placement = Placement(phy2log)
    share = load / placement.replica_count
    return balancedness(np.take_along_axis(share, phy2log.astype(np.int64), 1).reshape(LAYERS, ranks, -1).sum(2))


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


def zeros_among_the_tokens(config: PluginConfig) -> tuple[list[tuple[str, str]], list[float]]:
    """As many rows of zeros as of tokens in layer 0, on every rank; the log, and what is reported of the windows."""
    outcomes: list[Outcome] = []
    log, logger = Log(), logging.getLogger("eplb_plugin")
    logger.addHandler(log)
    rebalancer, entry = Rebalancer(config, outcomes.append), new_entry("balanced")
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    log.lines.clear()
    record(entry)
    assert entry.recorder is not None
    entry.recorder.expect([TOKENS])
    route_layer(entry.recorder, 0, np.zeros((TOKENS, TOP_K), np.int64))
    entry.recorder.fold()
    rebalancer.observe("key", dist.group.WORLD)
    rebalancer.decide("key", OLD.copy(), dist.group.WORLD)
    return log.lines, [one.served.left_out for one in outcomes if one.served is not None]


def test_rows_that_no_router_makes_are_told_once() -> None:
    """The planning rank says in one line how many rows a window left out, and reports their share to the metrics."""
    (lines, shares), others = run_ranks(2, zeros_among_the_tokens, PluginConfig(), timeout=300)
    line = "window of model: 192 of 576 rows (33.3 %) name an expert twice, which no router does: they are left out"
    assert [text for level, text in lines if level == "WARNING"] == [line]
    assert shares == [pytest.approx(1 / 3)]
    assert others == ([], [])


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


def rebalance_crowded() -> Result:
    replicas.MOST_REPLICAS = 1
    return rebalance(config=parse_config({"exact": {}}, ""))


def test_a_plan_that_exact_cannot_serve_is_refused() -> None:
    """On every rank, with what is too much; the old placement stays."""
    for placed, lines in run_ranks(2, rebalance_crowded, timeout=300):
        np.testing.assert_array_equal(placed, OLD)
        (line,) = [text for level, text in lines if level == "ERROR"]
        assert line.startswith("rebalance 1 of model refused, the old placement stays: replicas: found ")
        assert "expected at most 1 slots of one expert" in line


def rounds_planned() -> set[int]:
    """What every call of the planner was told of PEO, that of the warm-up too."""
    told: set[int] = set()
    solve = warm_up.plan_for

    def telling(what: Planned, statistics: RoutingStatistics, previous: Plan | None, options: PlanOptions) -> Plan:
        told.add(options.peo_rounds)
        return solve(what, statistics, previous, options)

    proposal.plan_for = warm_up.plan_for = telling
    placed, _ = rebalance(config=parse_config({"peo": {"num_rounds": 3}}, ""))
    assert (placed != OLD).any()
    return told


def test_the_planner_evens_the_rounds_that_the_settings_ask_for() -> None:
    """`peo:` reaches `plan` as its number of rounds: on the planning rank, which alone calls it."""
    assert run_ranks(2, rounds_planned, timeout=300) == [{3}, set()]
