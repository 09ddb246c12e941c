"""Traffic in parts of different kinds: ranks that are even in each of them, and nothing done about noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, forecast, plan, resplit
from eplb_plugin.planning.moves.phases import (
    LEAST,
    MOST,
    PRICE,
    _heaviest_three,
    _relief,
    busiest_in_turn,
    even_parts,
    parts_of,
)
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.price import busiest_rank
from eplb_plugin.planning.score import moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter
from lab.text_model.held_out import in_turn, read_kinds, together
from strategies import QUICK
from swap_cases import EXPERTS, RANKS, SLOTS, TOKENS, check, opened

TRACES = Path(__file__).resolve().parents[3] / "traces"
ARMS = [
    ("balanced", "hash"),
    ("affinity", "hash"),
    ("affinity", "nearest"),
    ("affinity", "weighted"),
    ("affinity", "cover"),
]


def in_two_kinds(counts: int, seed: int = 0) -> NDArray[np.int64]:
    """[2, 1, E] each half of the experts is four times as busy in one part."""
    rate = np.ones((2, 1, EXPERTS))
    rate[0, 0, : EXPERTS // 2] = rate[1, 0, EXPERTS // 2 :] = 4.0
    return np.random.default_rng(seed).poisson(counts * rate)


def statistics_of(parts: NDArray[np.int64]) -> RoutingStatistics:
    return RoutingStatistics(parts.sum(0), parts=parts)


def test_parts_that_differ_are_kept_and_those_that_do_not_are_one():
    parts = in_two_kinds(500)
    found = parts_of(statistics_of(parts), 0)
    np.testing.assert_allclose(found.sum(0), parts.sum(0)[0])
    np.testing.assert_allclose(found, parts[:, 0], rtol=0.05)
    alike = np.random.default_rng(0).poisson(500, (6, 1, EXPERTS))
    assert len(parts_of(statistics_of(alike), 0)) == 1


def test_few_tokens_tell_less_than_many():
    """The same rates: what little is known of them is shrunk towards the mean."""

    def apart(parts: NDArray[np.float64]) -> float:
        share = parts / parts.sum(1, keepdims=True)
        return float(np.abs(share[0] - share[-1]).sum())

    for counts, least, most in ((3, 0.5, 0.95), (500, 0.99, 1.0)):
        parts = in_two_kinds(counts)
        kept = apart(parts_of(statistics_of(parts), 0)) / apart(parts[:, 0].astype(float))
        assert least < kept < most


def test_many_parts_become_a_few_of_about_equal_size():
    parts = np.concatenate([in_two_kinds(200, seed) for seed in range(20)])
    found = parts_of(statistics_of(parts), 0)
    assert len(found) <= MOST
    np.testing.assert_allclose(found.sum(0), parts.sum(0)[0])
    assert found.sum(1).max() < 1.5 * found.sum(1).min()


def test_a_layer_without_parts_or_tokens_is_one_part():
    empty = np.zeros((3, 1, EXPERTS))
    assert parts_of(statistics_of(empty), 0).tolist() == [[0.0] * EXPERTS]
    assert len(parts_of(RoutingStatistics(np.ones((1, EXPERTS))), 0)) == 1
    first = np.concatenate([in_two_kinds(50)[:1], empty])
    assert len(parts_of(statistics_of(first), 0)) == 1


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 12))
def test_swaps_lower_what_they_say_within_the_budget(seed: int, parts: int, budget: int):
    state, old = opened(seed, parts, budget), opened(seed, parts, budget)
    crossing = int(state.visits.visited.sum())

    def cost() -> float:
        return (PRICE * busiest_in_turn(state.slot_load, RANKS) * crossing + int(state.visits.visited.sum())) / TOKENS

    began = cost()
    swaps = even_parts(state, LEAST)
    check(state, old)
    assert cost() <= began - swaps * LEAST * 0.99


@QUICK
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_a_swap_is_worth_what_counting_again_says(seed: int, ranks: int):
    rng = np.random.default_rng(seed)
    slot_load = rng.exponential(size=(3, ranks * SLOTS))
    rank_load = slot_load.reshape(3, ranks, SLOTS).sum(2)
    heaviest = np.empty((3, 3), np.int64)
    _heaviest_three(rank_load, heaviest)
    assert [row[row >= 0].tolist() for row in heaviest] == [np.argsort(-row)[:3].tolist() for row in rank_load]
    first, second = rng.choice(ranks, 2, replace=False) * SLOTS
    swapped = slot_load.copy()
    swapped[:, [first, second]] = swapped[:, [second, first]]
    lowered = rank_load.max(1).sum() - swapped.reshape(3, ranks, SLOTS).sum(2).max(1).sum()
    assert _relief(first, second, SLOTS, slot_load, rank_load, heaviest) == pytest.approx(lowered)


@pytest.mark.parametrize(("policy", "rule"), ARMS, ids=str)
@pytest.mark.parametrize("topology", [Topology(4, 1, 9), Topology(2, 4, 5)], ids=["4x1", "2x4"])
def test_kinds_of_text_in_turn_are_balanced_better(policy: str, rule: str, topology: Topology):
    """On real routing, held out; for few copies more, or fewer."""
    seen = together(read_kinds(TRACES, 0))
    later = read_kinds(TRACES, 1)
    apart, copies = in_turn(plan(seen, topology, policy=policy, dispatch=rule), later)
    mixed, copies_before = in_turn(plan(replace(seen, parts=None), topology, policy=policy, dispatch=rule), later)
    assert apart > mixed + 0.02
    assert copies < copies_before * 1.12


@pytest.mark.parametrize(("policy", "rule"), ARMS, ids=str)
@pytest.mark.parametrize("bound", ["max_moved_slots", "max_moved_slots_total"])
def test_bounds_on_moves_are_obeyed(policy: str, rule: str, bound: str):
    topology, (first, *others) = Topology(2, 4, 5), read_kinds(TRACES, 0)
    start = plan(first, topology, policy=policy, dispatch=rule)
    made = plan(
        together([first, *others]), topology, policy=policy, dispatch=rule, previous=start,
        options=PlanOptions(**{bound: 5}),
    )  # fmt: skip
    moved = moved_slots(made.placement, start.placement, topology)
    assert (moved.max() if bound == "max_moved_slots" else moved.sum()) <= 5
    assert moved.any()


def test_traffic_that_stays_moves_nothing_more():
    """Windows of one traffic differ by noise; what is done about parts must not chase it."""
    router = ClusteredRouter(2, 32, 4, num_topics=6, strength=2.0)
    windows = [RoutingStatistics.from_topk(router.window(4096, seed=number), 32) for number in range(6)]
    topology = Topology(2, 4, 5)
    for policy, rule in ARMS:
        seen = forecast(windows)
        assert seen.parts is not None
        made = plan(seen, topology, policy=policy, dispatch=rule)
        other = plan(replace(seen, parts=None), topology, policy=policy, dispatch=rule)
        assert made.digest == other.digest


def test_weights_are_renewed_for_every_part():
    seen, topology = together(read_kinds(TRACES, 0)), Topology(4, 1, 10)
    start = plan(replace(seen, parts=None), topology, dispatch="cover")
    apart = busiest_rank(resplit(start, seen), seen, 0.0).sum()
    mixed = busiest_rank(resplit(start, replace(seen, parts=None)), seen, 0.0).sum()
    assert apart < mixed


def test_a_move_pays_by_what_parts_gain():
    """Even in the sum, uneven in each part: a price that sees the sum alone would keep the old placement."""
    parts = in_two_kinds(2000)
    seen, topology = statistics_of(parts), Topology(1, 2, EXPERTS // 2)
    made = plan(replace(seen, parts=None), topology, policy="balanced", dispatch="hash")
    clumped = replace(made.placement, phy2log=np.arange(EXPERTS, dtype=np.int32)[None])
    priced = PlanOptions(expert_bytes=1.0, link_gbps=100.0, seconds_per_selection=1e-6, load_error=0.0)
    again = plan(seen, topology, policy="balanced", dispatch="hash", previous=clumped, options=priced)
    assert again.skipped_layers == 0
    assert moved_slots(again.placement, clumped, topology).sum() > 0
    before, after = (busiest_rank(plan_of(one, topology, "hash"), seen, 0.0) for one in (clumped, again.placement))
    assert after < 0.8 * before
