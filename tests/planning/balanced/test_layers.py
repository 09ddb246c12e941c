"""Evening from an old placement where single moves do not suffice: few slots, few experts, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import RoutingStatistics, Topology, plan
from eplb_plugin.planning.balanced.layers import CLEARLY, SLACK, even_balance, even_layers, recount
from eplb_plugin.planning.layer.packing import solve_balanced
from eplb_plugin.planning.moves.budget import count_moved
from eplb_plugin.planning.replicas.counts import apportion, copy_limit
from eplb_plugin.planning.score import moved_slots
from strategies import QUICK, Case, cases

NO_LIMIT = 1 << 30
TARGET = 1.02


@QUICK
@given(cases(), st.integers(0, 30) | st.just(NO_LIMIT))
def test_every_layer_is_even_or_near_a_full_solve_or_reported(case: Case, budget: int):
    load, old = case.statistics.load.astype(float), case.previous.phy2log
    ranks, slots = case.topology.num_ranks, case.topology.slots_per_rank
    budgets = np.full(len(load), budget)
    new, is_poor = even_layers(load, old, case.topology.node_of_rank, slots, TARGET, budgets)
    before, after = even_balance(load, old, slots), even_balance(load, new, slots)
    full = even_balance(load, solve_balanced(load, old.shape[1], ranks), slots)
    assert (after >= before * (1 - 1e-9)).all()
    assert (is_poor | (after >= np.minimum(full / (1 + CLEARLY), 1 / TARGET / (1 + SLACK)) - 1e-9)).all()
    assert (count_moved(new, old, ranks, case.statistics.num_experts) <= budget).all()
    for now, was in zip(new, old, strict=True):
        assert set(now) == set(was)


@QUICK
@given(cases(), st.integers(0, 12) | st.just(NO_LIMIT))
def test_recount_approaches_the_copies_of_a_full_solve(case: Case, budget: int):
    slots, experts = case.topology.slots_per_rank, case.statistics.num_experts
    limit = copy_limit(experts, case.topology.num_slots, case.topology.num_ranks)
    for load, old in zip(case.statistics.load.astype(float), case.previous.phy2log, strict=True):
        new, wanted = old.copy(), apportion(load, len(old), limit)
        left = recount(load, new, slots, budget)
        assert budget - left == count_moved(new[None], old[None], case.topology.num_ranks, experts)[0] <= budget
        before, after = (np.abs(np.bincount(one, minlength=experts) - wanted).sum() for one in (old, new))
        assert after <= before
        assert after < before or left == budget


@pytest.mark.parametrize(("ranks", "slots", "experts", "most"), [(48, 2, 84, 0.5), (80, 1, 64, 0.15)])
def test_few_slots_are_repaired_and_not_solved_afresh(ranks: int, slots: int, experts: int, most: float):
    topology, rng = Topology(1, ranks, slots), np.random.default_rng(0)
    load = np.rint(1e4 * np.exp(rng.normal(0, 0.35, (6, experts))))
    old = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash")
    later = RoutingStatistics(np.rint(load * np.exp(rng.normal(0, 0.3, load.shape))))
    made = plan(later, topology, policy="balanced", dispatch="hash", previous=old.placement)
    full = plan(later, topology, policy="balanced", dispatch="hash")
    assert made.resolved_layers == 0
    reached, possible = (even_balance(later.load, one.placement.phy2log, slots) for one in (made, full))
    assert (reached >= np.minimum(possible / (1 + CLEARLY), 1 / TARGET)).all()
    assert moved_slots(made.placement, old.placement, topology).sum() <= most * made.placement.phy2log.size
