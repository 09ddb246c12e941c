"""Slots ordered for rounds: even ones, the same ranks for every token, and no more copies than that takes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PlanOptions, PluginError, RoutingStatistics, Topology, plan, route
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.peo_slot_order import TOLERANCE, even_rounds, round_cost
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import moved_slots
from eplb_plugin.settings.config import parse_config
from eplb_plugin.workloads.families import FAMILIES
from eplb_plugin.workloads.imbalance import loads_at
from generators import RULES
from strategies import QUICK, Case, cases, weighted_plans


def divisors(count: int) -> list[int]:
    return [one for one in range(1, count + 1) if count % one == 0]


def ranks_of(plan: Plan, tokens: np.ndarray, sources: np.ndarray, layer: int) -> np.ndarray:
    slots = route(tokens, sources, plan, layer)
    assert (plan.placement.phy2log[layer][slots] == tokens).all()
    return plan.topology.rank_of_slot[slots]


def check_same_use(old: Plan, new: Plan) -> None:
    """Every token goes to the same ranks, and a rank holds the same experts with the same weights."""
    rng = np.random.default_rng(0)
    experts, ranks = old.placement.num_experts, old.topology.num_ranks
    tokens, sources = rng.integers(0, experts, (60, 2)), rng.integers(0, ranks, 60)
    for layer in range(old.placement.num_layers):
        assert np.array_equal(ranks_of(old, tokens, sources, layer), ranks_of(new, tokens, sources, layer))
    assert moved_slots(new.placement, old.placement, old.topology).sum() == 0
    for name in ("replica_weights", "source_weights", "cover_weights"):
        weights = getattr(old, name)
        if weights is None:
            continue
        shape = (*weights.shape[:-1], ranks, old.topology.slots_per_rank)
        np.testing.assert_array_equal(
            np.sort(weights.reshape(shape), axis=-1), np.sort(getattr(new, name).reshape(shape), axis=-1)
        )


@QUICK
@given(cases(), st.sampled_from(["hash", "nearest"]), st.data())
def test_any_placement(case: Case, rule: str, data: st.DataObject):
    old = plan_of(case.previous, case.topology, rule)
    rounds = data.draw(st.sampled_from(divisors(case.topology.slots_per_rank)))
    new = even_rounds(old, case.statistics.load, rounds)
    check_same_use(old, new)
    np.testing.assert_allclose(new.replica_weights, replica_weights(new.placement, case.topology, rule))
    before, after = (round_cost(one, case.statistics.load, rounds) for one in (old, new))
    assert (after <= before + 1e-9).all()
    assert (after >= 1.0 - 1e-9).all()


@QUICK
@given(weighted_plans(), st.data())
def test_weights_stay_with_their_copies(old: Plan, data: st.DataObject):
    rounds = data.draw(st.sampled_from(divisors(old.topology.slots_per_rank)))
    load = np.random.default_rng(1).integers(0, 100, (2, old.placement.num_experts))
    check_same_use(old, even_rounds(old, load, rounds))


def slowest(loads: np.ndarray, rounds: int) -> float:
    return float(loads.reshape(rounds, -1).sum(axis=1).max())


@pytest.mark.parametrize("seed", range(8))
def test_near_the_best_order_there_is(seed: int):
    """One rank, six slots, against every order: within the tolerance, or as good as exchanges of two can be."""
    loads = np.random.default_rng(seed).lognormal(0.0, 1.0, 6)
    topology = Topology(1, 1, 6)
    old = plan_of(Placement(np.arange(6, dtype=np.int32)[None]), topology, "hash")
    for rounds in (2, 3):
        best = min(slowest(np.array(order), rounds) for order in permutations(loads))
        new = even_rounds(old, loads[None], rounds).placement.phy2log[0]
        allowed = max(1.1 * best, loads.sum() / rounds * (1.0 + TOLERANCE))
        assert slowest(loads[new], rounds) <= allowed


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_real_load_in_rounds(family: str):
    """DeepSeek's shape, on a window that the order was not made for: rounds cost hardly more than even ones would."""
    target = loads_at(1.4, FAMILIES[family], 256, 8, 8, layers=4)
    topology, rng = Topology(1, 8, 36), np.random.default_rng(5)
    seen, unseen = (rng.poisson(target.shares * 400_000).astype(np.int64) for _ in range(2))
    made = plan(RoutingStatistics(seen), topology, policy="balanced", dispatch="hash")
    ordered = even_rounds(made, seen, 4)
    before, after = (float(round_cost(one, unseen, 4).mean()) for one in (made, ordered))
    assert after <= 1.0 + 1.5 * TOLERANCE
    assert before > after + 0.1


def test_hot_experts_share_a_round():
    """No order makes these rounds even, so all ranks have their hot one first, and the rest is even."""
    loads = np.array([[1, 2, 90, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 80]])
    old = plan_of(Placement(np.arange(16, dtype=np.int32)[None]), Topology(1, 2, 8), "hash")
    new = even_rounds(old, loads, 4)
    by_round = loads[0][new.placement.phy2log[0]].reshape(2, 4, 2).sum(axis=2)
    assert (by_round.argmax(axis=1) == 0).all()
    assert round_cost(new, loads, 4)[0] < 0.8 * round_cost(old, loads, 4)[0]


def test_even_rounds_stay_as_they_are():
    topology = Topology(1, 2, 4)
    placement = Placement(np.arange(8, dtype=np.int32)[None])
    old = plan_of(placement, topology, "hash")
    even = np.array([[4, 1, 2, 3, 4, 1, 3, 2]])  # 5 and 5 on each rank
    assert np.array_equal(even_rounds(old, even, 2).placement.phy2log, placement.phy2log)
    light = np.array([[9, 11, 10, 10, 6, 3, 0, 0]])  # rank 1 is uneven, but never the slowest of a round
    assert np.array_equal(even_rounds(old, light, 2).placement.phy2log, placement.phy2log)
    uneven = np.array([[9, 11, 1, 1, 0, 0, 6, 3]])  # rank 1 stays: its second round is lighter than rank 0's then is
    new = even_rounds(old, uneven, 2).placement.phy2log[0]
    assert (new != np.arange(8)).sum() == 2  # one exchange
    assert sorted(uneven[0][new[:4]].reshape(2, 2).sum(axis=1)) == [10, 12]


def test_twins_stay_in_their_order():
    """Under `nearest` the first of two copies on a rank serves it, so the one that did must stay the first."""
    placement = Placement(np.array([[1, 0, 2, 0]], np.int32))
    topology = Topology(1, 1, 4)
    old = plan_of(placement, topology, "nearest")
    assert old.replica_weights[0].tolist() == [1, 1, 1, 0]
    new = even_rounds(old, [[10, 6, 1]], 2)
    assert new.placement.phy2log[0].tolist() == [0, 0, 2, 1]
    np.testing.assert_array_equal(new.replica_weights, replica_weights(new.placement, topology, "nearest"))


@pytest.mark.parametrize("rule", RULES)
def test_plan_orders_slots_for_rounds(rule: str):
    rng = np.random.default_rng(2)
    rows = np.argsort(rng.gumbel(size=(2, 400, 24)) + np.linspace(0.0, 4.0, 24), axis=2)[:, :, :3]
    statistics, topology = RoutingStatistics.from_topk(rows, 24), Topology(2, 2, 8)
    plain = plan(statistics, topology, dispatch=rule)
    made = plan(statistics, topology, dispatch=rule, options=PlanOptions(peo_rounds=4))
    check_same_use(plain, made)
    costs = [round_cost(one, statistics.load, 4) for one in (plain, made)]
    assert (costs[1] <= costs[0]).all()
    assert costs[1].mean() < costs[0].mean()
    bounded = PlanOptions(peo_rounds=4, max_moved_slots=0)
    kept = plan(statistics, topology, dispatch=rule, previous=plain, options=bounded)
    assert moved_slots(kept.placement, plain.placement, topology).sum() == 0


def test_refused():
    topology, load = Topology(1, 2, 6), np.ones((1, 12))
    with pytest.raises(
        PluginError, match="peo_rounds: found 4, expected a divisor of 6 slots per rank; fix: one of 1, 2"
    ):
        plan(RoutingStatistics(load), topology, policy="balanced", options=PlanOptions(peo_rounds=4))
    with pytest.raises(PluginError, match="peo_rounds: found 0"):
        plan(RoutingStatistics(load), topology, policy="balanced", options=PlanOptions(peo_rounds=0))


def test_rounds_of_the_settings():
    assert parse_config({}, "").peo_rounds(8) is None
    assert parse_config({"peo": {}}, "").peo_rounds(8) == 4
    assert parse_config({"peo": {"num_rounds": 2}}, "").peo_rounds(8) == 2
    assert parse_config({"peo": {"num_rounds": 3}}, "").peo_rounds(8) is None
