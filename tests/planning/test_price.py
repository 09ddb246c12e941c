"""A layer moves only if that saves more time than it costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PlanOptions, PluginError, RoutingStatistics, Topology, forecast, plan
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import Planner
from eplb_plugin.planning.price import busiest_rank, crossing_copies, move_seconds, step_seconds, take_layers
from eplb_plugin.planning.score import expected_rank_load, moved_slots, received_slots
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES
from strategies import QUICK, Case, cases

PRICES = PlanOptions(
    expert_bytes=40e6, link_gbps=400, token_bytes=20e3, seconds_per_selection=1e-6, window_steps=100, horizon_steps=1000
)
rules, policies = st.sampled_from(RULES), st.sampled_from(["balanced", "affinity", "deepseek"])
horizons = st.sampled_from([1e-3, 1.0, 1e3, 1e5, 1e7, 1e12])


def used(placement: Placement, topology: Topology, rule: str) -> Plan:
    return Plan(placement, topology, rule, replica_weights(placement, topology, rule), 0.0)


def total(made: Plan, kept: Plan, statistics: RoutingStatistics, options: PlanOptions) -> np.ndarray:
    """[L] seconds until the next rebalance, the move included."""
    return options.horizon_steps * step_seconds(made, statistics, options) + move_seconds(made, kept, options)


def test_figures_by_hand():
    """Two nodes of one rank, 8 tokens of 2 experts: every term of the formula, in its units."""
    topology, kept = Topology(2, 1, 2), used(Placement(np.array([[0, 1, 2, 3]])), Topology(2, 1, 2), "hash")
    rows = np.array([[[0, 1]] * 6 + [[2, 3]] * 2])
    statistics = RoutingStatistics.from_topk(rows, 4)
    options = replace(PRICES, load_error=0.0, window_steps=2, token_bytes=0)
    assert step_seconds(kept, statistics, options) == pytest.approx([12 * 1e-6 / 2])
    crossed = crossing_copies(kept, statistics)[0]
    options = replace(options, seconds_per_selection=None, token_bytes=1e3)
    assert step_seconds(kept, statistics, options) == pytest.approx([crossed / 2 * 1e3 * 8 / 400e9 / 2])
    made = used(Placement(np.array([[0, 2, 1, 3]])), topology, "hash")
    assert move_seconds(made, kept, options) == pytest.approx([40e6 * 8 / 400e9])
    assert moved_slots(made.placement, kept.placement, topology).tolist() == [2]
    assert received_slots(made.placement, kept.placement, topology).tolist() == [[1, 1]]


@QUICK
@given(cases(), policies, rules, horizons)
def test_the_total_never_rises(case: Case, policy: str, rule: str, horizon: float):
    """Step time over the horizon plus the move: in no layer more than with the placement in force."""
    options = replace(PRICES, horizon_steps=horizon)
    made = plan(case.statistics, case.topology, policy=policy, dispatch=rule, previous=case.previous, options=options)
    # with weights of its own, the placement in force is compared at its best use
    kept = Planner(case.statistics, case.topology, policy, rule, 1, options).use(case.previous.phy2log)
    after, before = (total(p, kept, case.statistics, options) for p in (made, kept))
    assert (after <= before * (1 + 1e-12)).all()
    moved = moved_slots(made.placement, case.previous, case.topology) > 0
    same = (made.placement.phy2log == case.previous.phy2log).all(1)
    assert (moved | same).all()
    assert 0 <= made.skipped_layers <= (~moved).sum()
    if rule in ("hash", "nearest"):
        np.testing.assert_allclose(made.replica_weights, replica_weights(made.placement, case.topology, rule))


@QUICK
@given(cases(), rules, st.tuples(horizons, horizons))
def test_more_layers_move_if_the_next_rebalance_is_further(case: Case, rule: str, pair: tuple[float, float]):
    def moving(horizon: float) -> tuple[np.ndarray, int]:
        made = plan(
            case.statistics, case.topology, policy="affinity", dispatch=rule, previous=case.previous,
            options=replace(PRICES, horizon_steps=horizon),
        )  # fmt: skip
        return moved_slots(made.placement, case.previous, case.topology) > 0, made.skipped_layers

    (soon, skipped_soon), (late, skipped_late) = (moving(h) for h in sorted(pair))
    assert (soon <= late).all()
    assert skipped_soon >= skipped_late


@QUICK
@given(cases(), rules)
def test_nothing_to_gain_nothing_moves(case: Case, rule: str):
    """Without load the old row stays, even if moves are free."""
    free = replace(PRICES, expert_bytes=0)
    layers, experts = case.statistics.load.shape
    idle = RoutingStatistics(np.zeros((layers, experts)))
    made = plan(idle, case.topology, policy="balanced", dispatch=rule, previous=case.previous, options=free)
    assert np.array_equal(made.placement.phy2log, case.previous.phy2log)


def window(layers: int = 4, seed: int = 0) -> RoutingStatistics:
    router = ClusteredRouter(layers, 64, 4, num_topics=8, skew=1.0)
    return RoutingStatistics.from_topk(router.window(1024, seed), 64)


@pytest.mark.parametrize("policy", ["balanced", "affinity"])
@pytest.mark.parametrize("rule", RULES)
def test_a_huge_gain_moves_as_if_unpriced(policy: str, rule: str):
    """From the engines' start, with all the time in the world: the plan without prices, bit for bit."""
    statistics, topology, start = window(), Topology(2, 4, 10), linear_placement(4, 64, 80)
    free = plan(statistics, topology, policy=policy, dispatch=rule, previous=start)
    long = replace(PRICES, horizon_steps=1e12)
    priced = plan(statistics, topology, policy=policy, dispatch=rule, previous=start, options=long)
    assert priced.digest == free.digest
    assert (priced.skipped_layers, free.skipped_layers) == (0, 0)


def test_a_dear_move_is_skipped_and_counted():
    """A link so slow that no layer pays: the placement in force, all four layers counted."""
    statistics, topology, start = window(), Topology(2, 4, 10), linear_placement(4, 64, 80)
    slow = replace(PRICES, link_gbps=1e-6, token_bytes=None)
    made = plan(statistics, topology, policy="balanced", dispatch="hash", previous=start, options=slow)
    assert np.array_equal(made.placement.phy2log, start.phy2log)
    assert made.skipped_layers == 4


def test_layers_are_judged_one_by_one():
    """One layer is badly out of balance, the others hardly: only that one moves."""
    rng = np.random.default_rng(0)
    load = rng.normal(1000, 5, (4, 64)).clip(1)
    load[2, :8] = 20000
    topology, start = Topology(2, 4, 10), linear_placement(4, 64, 80)
    options = replace(PRICES, token_bytes=None, horizon_steps=100, expert_bytes=1e8)
    made = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash", previous=start, options=options)
    moved = moved_slots(made.placement, start, topology) > 0
    assert moved[2]
    assert made.skipped_layers == (~moved).sum() > 0


def test_a_cheap_repair_is_tried_where_a_full_solve_does_not_pay():
    """The unpriced plan would lay everything out afresh; priced, fewer slots move instead of none."""
    statistics, topology, start = window(), Topology(4, 2, 10), linear_placement(4, 64, 80)
    free = plan(statistics, topology, dispatch="hash", previous=start)
    horizons_tried = [
        plan(statistics, topology, dispatch="hash", previous=start, options=replace(PRICES, horizon_steps=steps))
        for steps in (10, 100, 1e3, 3e3, 1e4, 3e4, 1e5)
    ]
    moves = [moved_slots(p.placement, start, topology).sum() for p in horizons_tried]
    assert any(0 < m < moved_slots(free.placement, start, topology).sum() for m in moves)


def test_peaks_are_expected_peaks():
    """Without load error the busiest rank's load; with it, higher: noise never makes the busiest rank lighter."""
    statistics, topology = window(), Topology(2, 4, 10)
    made = plan(statistics, topology, policy="balanced", dispatch="hash")
    exact = expected_rank_load(statistics.load, made).max(1)
    np.testing.assert_allclose(busiest_rank(made, statistics, 0.0), exact)
    assert (busiest_rank(made, statistics, 0.15) > exact * 1.02).all()


def net_gain(change: float, horizon: float, options: PlanOptions) -> tuple[float, int]:
    """Seconds won on the window that came (not the one planned for), and layers moved; traffic changed by `change`.

    Planned for a forecast's mean alone: with the windows that it was made of, a plan knows by itself what is noise.
    """
    rng, topology = np.random.default_rng(4), Topology(2, 4, 10)
    exact = replace(PRICES, token_bytes=None, horizon_steps=horizon, load_error=0.0)
    rate = 500 * np.exp(0.5 * rng.standard_normal((48, 64)))
    changed = rate * np.exp(change * rng.standard_normal(rate.shape))
    windows = [
        RoutingStatistics(rng.poisson(now * np.exp(0.15 * rng.standard_normal(rate.shape))))
        for now in [rate] * 6 + [changed] * 3
    ]
    earlier, later = (replace(forecast(windows[:seen]), parts=None) for seen in (5, 8))
    start = plan(earlier, topology, policy="balanced", dispatch="hash").placement
    made, kept = (
        plan(later, topology, policy="balanced", dispatch="hash", previous=start, options=options),
        used(start, topology, "hash"),
    )
    gain = total(kept, kept, windows[8], exact) - total(made, kept, windows[8], exact)
    return float(gain.sum()), int((moved_slots(made.placement, start, topology) > 0).sum())


def test_steady_traffic_moves_nothing():
    """Windows that differ by noise: a move would look worth it on the window it was fitted to, and lose on the next."""
    priced = replace(PRICES, token_bytes=None)
    assert net_gain(0.0, 1000, priced) == (0.0, 0)
    gullible, moved = net_gain(0.0, 1000, replace(priced, load_error=0.0))
    assert (moved > 0, gullible < 0.0) == (True, True)
    assert net_gain(0.0, 1000, PlanOptions())[0] < gullible


def test_changed_traffic_moves_where_it_pays():
    """On the window that came: a gain, and a larger one than with every move made."""
    won, moved = net_gain(0.3, 300, replace(PRICES, token_bytes=None, horizon_steps=300))
    assert won > 0.0
    assert 0 < moved < 48
    assert won > net_gain(0.3, 300, PlanOptions())[0]


def test_gain_must_be_knowable():
    """Only copies have a price, and nothing is known of tokens: refused, instead of never moving."""
    options = replace(PRICES, seconds_per_selection=None)
    with pytest.raises(PluginError, match="price of a move: found token_bytes with load only"):
        plan(RoutingStatistics(np.ones((1, 4))), Topology(1, 2, 2), policy="balanced", dispatch="hash", options=options)


def test_layers_are_taken_from_either_plan():
    first, second = (used(Placement(np.array([s, s])), Topology(1, 1, 2), "hash") for s in ([0, 1], [1, 0]))
    mixed = take_layers(np.array([True, False]), first, second)
    assert mixed.placement.phy2log.tolist() == [[0, 1], [1, 0]]
