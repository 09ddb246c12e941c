"""Repair under the even rule: bounds obeyed exactly, never worse, exhaustive on tiny cases, odd shapes, all layers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.balanced.layers import even_balance
from eplb_plugin.planning.balanced.moves import even_out
from eplb_plugin.planning.moves.budget import count_moved, share_out
from eplb_plugin.planning.score import layer_balancedness, moved_slots
from strategies import QUICK, Case, cases

NO_LIMIT = 1 << 30


def rank_loads(load, phy2log, slots: int):
    per_copy = load / np.maximum(np.bincount(phy2log, minlength=len(load)), 1)
    return per_copy[phy2log].reshape(-1, slots).sum(axis=1)


@QUICK
@given(cases(), st.integers(0, 12))
def test_evening_obeys_its_budget_and_never_loads_the_busiest_rank(case: Case, budget: int):
    slots, experts = case.topology.slots_per_rank, case.statistics.num_experts
    for load, old in zip(case.statistics.load.astype(float), case.previous.phy2log, strict=True):
        new = old.copy()
        even_out(load, new, case.topology.node_of_rank, slots, 1.0, budget)
        assert count_moved(new[None], old[None], case.topology.num_ranks, experts)[0] <= budget
        assert set(new) == set(old)
        assert rank_loads(load, new, slots).max() <= rank_loads(load, old, slots).max() * (1 + 1e-9) + 1e-9
        balance = layer_balancedness(rank_loads(load, new, slots)[None])
        np.testing.assert_allclose(even_balance(load[None], new[None], slots), balance)


def best_single_move(load, old, slots: int) -> float:
    """Lightest busiest rank after one swap or one overwrite that adds no overload, by trying them all. Left out: what a
    third rank would both take over and get rid of.
    """
    ranks, before = old.reshape(-1, slots), rank_loads(load, old, slots)
    best, mean, busiest = before.max(), before.mean(), int(before.argmax())
    for a, b in product(range(len(old)), repeat=2):
        swapped, written = old.copy(), old.copy()
        swapped[a], swapped[b] = old[b], old[a]
        written[b] = old[a]
        others = (row for rank, row in enumerate(ranks) if rank not in (busiest, b // slots))
        third = any(old[a] in row and old[b] in row for row in others)
        for new in (swapped,) if third else (swapped, written):
            twins = (np.diff(np.sort(new.reshape(-1, slots), axis=1), axis=1) == 0).any()
            after = rank_loads(load, new, slots)
            overload = np.maximum(after - mean, 0).sum() - np.maximum(before - mean, 0).sum()
            if set(new) == set(old) and not twins and overload < -1e-9:
                best = min(best, after.max())
    return float(best)


@QUICK
@given(st.integers(0, 2**32 - 1))
def test_no_relief_is_overlooked(seed: int):
    """Where a single swap or overwrite makes the busiest rank and the overload of all lighter, evening does."""
    rng = np.random.default_rng(seed)
    old = np.concatenate([rng.permutation(6), rng.permutation(6)[:2]]).astype(np.int32)
    if (old[::2] == old[1::2]).any():
        return
    load, new = rng.random(6) + 0.2, old.copy()
    before, possible = rank_loads(load, old, 2).max(), best_single_move(load, old, 2)
    even_out(load, new, np.zeros(4, np.int32), 2, 1.0, NO_LIMIT)
    assert possible > 0.995 * before or rank_loads(load, new, 2).max() < before


@QUICK
@given(
    cases(),
    st.sampled_from(["balanced", "affinity"]),
    st.sampled_from(["hash", "nearest", "weighted", "cover"]),
    st.integers(0, 20),
    st.none() | st.integers(0, 12),
)
def test_the_bound_in_total_is_obeyed_exactly(case: Case, policy: str, rule: str, total: int, bound: int | None):
    options = PlanOptions(max_moved_slots=bound, max_moved_slots_total=total)
    made = plan(case.statistics, case.topology, policy=policy, dispatch=rule, previous=case.previous, options=options)
    moved = moved_slots(made.placement, case.previous, case.topology)
    assert moved.sum() <= total
    assert bound is None or moved.max() <= bound
    assert made.resolved_layers == 0


@QUICK
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 40))
def test_a_total_is_shared_out_exactly(wanted: list[int], total: int):
    shares = share_out(np.array(wanted), total)
    assert shares.sum() == min(total, sum(wanted))
    assert (shares >= 0).all()
    assert (shares <= wanted).all()


@QUICK
@given(cases())
def test_moves_are_counted_as_they_are_scored(case: Case):
    made = plan(case.statistics, case.topology, policy="balanced", dispatch="hash")
    counted = count_moved(
        made.placement.phy2log, case.previous.phy2log, case.topology.num_ranks, case.statistics.num_experts
    )
    assert np.array_equal(counted, moved_slots(made.placement, case.previous, case.topology))


@pytest.mark.parametrize(
    ("nodes", "ranks", "experts", "slots"), [(18, 8, 256, 2), (40, 8, 256, 1), (4, 8, 250, 9), (3, 5, 17, 2)]
)
def test_odd_shapes(nodes: int, ranks: int, experts: int, slots: int):
    topology = Topology(nodes, ranks, slots)
    rng = np.random.default_rng(0)
    load = np.rint(1e4 * np.exp(rng.normal(0, 0.4, (3, experts))))
    old = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash")
    assert old.resolved_layers == 3
    later = RoutingStatistics(load * np.exp(rng.normal(0, 0.3, load.shape)))
    made = plan(later, topology, policy="balanced", dispatch="hash", previous=old.placement)
    kept, now = (even_balance(later.load, one.placement.phy2log, slots) for one in (old, made))
    assert (now >= kept - 1e-9).all()
    if slots > 1:
        assert (np.diff(np.sort(made.placement.phy2log.reshape(3, -1, slots), axis=2), axis=2) > 0).all()


@pytest.mark.parametrize(("sigma", "most"), [(0.15, 0.07), (0.30, 0.10)])
def test_a_drift_is_repaired_with_few_moves(sigma: float, most: float):
    topology, rng = Topology(4, 8, 9), np.random.default_rng(0)
    load = np.rint(1e4 * np.exp(rng.normal(0, 0.35, (12, 256))))
    old = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash")
    later = RoutingStatistics(load * np.exp(rng.normal(0, sigma, load.shape)))
    made = plan(later, topology, policy="balanced", dispatch="hash", previous=old.placement)
    assert even_balance(later.load, made.placement.phy2log, 9).min() > 0.98
    assert moved_slots(made.placement, old.placement, topology).sum() <= most * made.placement.phy2log.size
    assert made.resolved_layers == 0


def test_only_hopeless_layers_are_solved_afresh():
    topology, rng = Topology(1, 8, 2), np.random.default_rng(0)
    load = np.rint(1e4 * np.exp(rng.normal(0, 0.5, (2, 16))))
    good = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash")
    assert (
        plan(
            RoutingStatistics(load), topology, policy="balanced", dispatch="hash", previous=good.placement
        ).resolved_layers
        <= 2
    )
    bounded = PlanOptions(max_moved_slots_total=3)
    made = plan(
        RoutingStatistics(load), topology, policy="balanced", dispatch="hash", previous=good.placement, options=bounded
    )
    assert made.resolved_layers == 0


def test_previous_is_left_alone():
    topology, load = Topology(1, 4, 3), np.arange(1.0, 9.0)[None] ** 2
    old = Placement(np.arange(12, dtype=np.int32)[None] % 8)
    before = old.phy2log.copy()
    plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash", previous=old)
    assert np.array_equal(old.phy2log, before)
