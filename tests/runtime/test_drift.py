"""The judge of windows between rebalances: silent about chance, and about what a plan never promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_plugin import RoutingStatistics, Topology, plan, resplit
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.score import balancedness, expected_rank_load
from eplb_plugin.runtime.drift import Drift, Shortfall
from eplb_plugin.settings.sections import RebalanceConfig

TOPOLOGY, EXPERTS, LAYERS = Topology(1, 8, 5), 32, 3
DEFAULT = RebalanceConfig()


def traffic(seed: int, skew: float) -> np.ndarray:
    """[L, E] shares of experts, the first of a random order `skew` to the power of e times as busy as the last."""
    random = np.random.default_rng(seed)
    shares = random.permuted(np.tile(np.exp(np.linspace(0.0, skew, EXPERTS)), (LAYERS, 1)), axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


def made_for(load: np.ndarray) -> Plan:
    return plan(RoutingStatistics(load), TOPOLOGY, policy="balanced")


def judge(load: np.ndarray, made: Plan) -> Drift:
    found = Drift(DEFAULT.when_balancedness_falls_by, DEFAULT.windows)
    found.planned(load, made)
    return found


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 4.0))
@pytest.mark.parametrize("planned", [300, 2_500, 4_500, 100_000])
@pytest.mark.parametrize("served", [300, 2_200, 4_500, 100_000])
def test_stationary_traffic_is_never_short(planned: int, served: int, seed: int, skew: float) -> None:
    """200 windows of Poisson counts, whether plan and windows know many selections or few: not one shortfall."""
    shares, random = traffic(seed, skew), np.random.default_rng(seed)
    first = random.poisson(planned * shares)
    made = made_for(first)
    drift = judge(first, made)
    assert not any(drift.served(random.poisson(served * shares), made) for _ in range(200))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.floats(2.0, 4.0))
def test_a_shift_is_found_in_so_many_windows(seed: int, skew: float) -> None:
    """At a change that no shares make up for, the second window tells, and says how even ranks were in both."""
    before, after, random = traffic(seed, skew), traffic(seed + 1, skew), np.random.default_rng(seed)
    first = random.poisson(30_000 * before)
    made = made_for(first)
    drift = judge(first, made)
    assert drift.served(random.poisson(30_000 * before), made) is None
    served = []
    for _ in range(DEFAULT.windows):
        window = random.poisson(30_000 * after)
        served.append(balancedness(expected_rank_load(window, made)))
        found = drift.served(window, made)
    assert found == Shortfall(pytest.approx(np.mean(served)), found.planned, 2)
    assert found.served < found.planned - DEFAULT.when_balancedness_falls_by


def test_shares_that_make_up_for_it_are_counted() -> None:
    """What serves is judged: new shares on the old placement that are even enough need no rebalance."""
    load = np.full((1, 8), 100.0)
    topology = Topology(1, 2, 8)
    made = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="weighted")
    shifted = load.copy()
    shifted[0, made.placement.phy2log[0, :8][0]] = 2000.0
    skewed = np.where(np.arange(16) < 8, 1.0, 1e-6)
    old = Plan(made.placement, topology, "weighted", replica_weights(made, skewed), 0.0, None, None)
    new = resplit(made, RoutingStatistics(shifted))
    drift = Drift(0.1, 1)
    drift.planned(load, made)
    assert drift.served(shifted, old) is not None
    assert drift.served(shifted, new) is None


def replica_weights(made: Plan, wanted: np.ndarray) -> np.ndarray:
    """[1, P] shares of copies in proportion to what is wanted of slots."""
    slots = made.placement.phy2log[0]
    total = np.bincount(slots, wanted)
    return (wanted / total[slots])[None]


def alternating(pattern: str) -> list[bool]:
    """Whether windows, s = as short as can be or . = as planned, are found to be short."""
    load = np.full((1, 4), 10_000.0)
    made = plan(RoutingStatistics(load), Topology(1, 4, 1), policy="balanced")
    short = np.array([[40_000.0, 0.0, 0.0, 0.0]])
    drift = Drift(0.2, 2)
    drift.planned(load, made)
    return [drift.served(short if one == "s" else load, made) is not None for one in pattern]


def test_windows_in_a_row() -> None:
    """One that is as planned begins the count again; beyond, every further one is short."""
    assert alternating("s.s.sss.s") == [False] * 5 + [True, True, False, False]


def test_the_next_plan_begins_anew() -> None:
    """Windows before a rebalance say nothing of what came of it; nor does any before the first plan."""
    load = np.full((1, 4), 10_000.0)
    made = plan(RoutingStatistics(load), Topology(1, 4, 1), policy="balanced")
    short = np.array([[40_000.0, 0.0, 0.0, 0.0]])
    drift = Drift(0.2, 2)
    assert drift.served(short, made) is None
    drift.planned(load, made)
    assert drift.served(short, made) is None
    drift.planned(load, made)
    assert drift.served(short, made) is None
    assert str(drift.served(short, made)) == "balancedness 0.25 in 2 windows, planned 0.99"


def test_what_was_never_promised_is_not_missed() -> None:
    """One expert that is hotter than a rank can be: the plan says so, and windows like it are as planned."""
    load = np.array([[90_000.0, 10.0, 10.0, 10.0]])
    made = plan(RoutingStatistics(load), Topology(1, 4, 1), policy="balanced")
    drift = Drift(0.1, 1)
    drift.planned(load, made)
    assert drift.served(load, made) is None


def test_a_small_window_says_nothing() -> None:
    """It neither falls short nor ends a row of those that do: chance alone costs more than the bound."""
    load = np.full((1, 4), 10_000.0)
    made = plan(RoutingStatistics(load), Topology(1, 4, 1), policy="balanced")
    drift = Drift(0.2, 2)
    drift.planned(load, made)
    short, small = np.array([[40_000.0, 0.0, 0.0, 0.0]]), np.array([[6.0, 0.0, 0.0, 0.0]])
    found = [drift.served(window, made) is not None for window in (small, short, small, short)]
    assert found == [False, False, False, True]
