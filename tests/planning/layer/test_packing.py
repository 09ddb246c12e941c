"""Packing and replication: exact sizes, no twins, brute force on tiny cases."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning import deepseek
from eplb_plugin.planning.balanced.layers import even_balance
from eplb_plugin.planning.layer.packing import STOP, pack, solve_balanced
from eplb_plugin.planning.replicas.counts import copy_limit
from eplb_plugin.planning.score import layer_balancedness
from strategies import QUICK


def brute_force(weights: list[float], ranks: int) -> float:
    """Lightest possible busiest rank, all ranks with equally many items."""
    size = len(weights) // ranks

    @cache
    def best(left: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        first, rest = left[0], left[1:]
        options = []
        for mates in combinations(rest, size - 1):
            here = weights[first] + sum(weights[m] for m in mates)
            options.append(max(here, best(tuple(i for i in rest if i not in mates))))
        return min(options)

    return best(tuple(range(len(weights))))


def peak(members, weights) -> float:
    return max(sum(weights[item] for item in row) for row in members)


@QUICK
@given(st.integers(1, 3), st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_two_ranks_are_packed_as_well_as_possible(size: int, numbers: list[int]):
    weights = np.array(numbers[: 2 * size], float)
    members = pack(np.arange(len(weights), dtype=np.int32), weights, 2)
    mean = weights.sum() / 2
    assert peak(members, weights) <= max(brute_force(list(weights), 2), mean * 1.001) + 1e-9


@QUICK
@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_three_ranks_of_two_are_packed_as_well_as_possible(numbers: list[int]):
    weights = np.array(numbers, float)
    members = pack(np.arange(6, dtype=np.int32), weights, 3)
    assert peak(members, weights) <= max(brute_force(numbers, 3), weights.sum() / 3 * 1.001) + 1e-9


@QUICK
@given(st.lists(st.integers(0, 50), min_size=9, max_size=9))
def test_three_ranks_of_three_are_close(numbers: list[int]):
    weights = np.array(numbers, float)
    members = pack(np.arange(9, dtype=np.int32), weights, 3)
    assert peak(members, weights) <= 1.1 * brute_force(numbers, 3) + 1e-9


@QUICK
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_no_twins_wherever_that_is_possible(ranks: int, slots: int, seed: int):
    """Copy counts at random, as unequal as they may be: up to one copy per rank."""
    rng = np.random.default_rng(seed)
    counts: list[int] = []
    while sum(counts) < ranks * slots:
        counts.append(int(min(rng.integers(1, ranks + 1), ranks * slots - sum(counts))))
    if len(counts) < slots:
        return
    items = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    members = pack(items, rng.random(len(items)), ranks)
    assert sorted(members.ravel()) == sorted(items)
    assert all(len(set(row)) == slots for row in members.tolist())


def test_more_slots_than_one_copy_per_rank_can_fill():
    assert copy_limit(4, 16, 4) == 4
    assert copy_limit(4, 24, 4) == 6
    assert np.bincount(solve_balanced(np.arange(4.0)[None], 24, 4)[0]).sum() == 24


@QUICK
@given(
    st.integers(1, 16), st.integers(1, 6), st.integers(1, 96), st.integers(0, 2**32 - 1),
    st.sampled_from(["uniform", "log-normal", "power law", "ties"]),
)  # fmt: skip
def test_never_below_vanilla(ranks: int, slots: int, experts: int, seed: int, kind: str):
    """In no layer; both within STOP of even count as equal. Vanilla may put two copies of an expert on one rank."""
    experts, rng = min(experts, ranks * slots), np.random.default_rng(seed)
    load = {
        "uniform": rng.integers(0, 10**6, (6, experts)),
        "log-normal": np.rint(1e4 * np.exp(rng.normal(0, rng.choice([0.1, 0.5, 1.5]), (6, experts)))),
        "power law": np.rint(1e3 * rng.pareto(1.2, (6, experts))),
        "ties": rng.integers(0, 5, (6, experts)),
    }[kind].astype(float)
    vanilla = deepseek.solve(load, ranks * slots, 1, 1, ranks)[0].astype(np.int32)
    ours, theirs = (even_balance(load, one, slots) for one in (solve_balanced(load, ranks * slots, ranks), vanilla))
    assert (ours >= np.minimum(theirs, 1 / (1 + STOP)) - 1e-9).all()


@pytest.mark.parametrize(
    ("experts", "slots", "ranks", "least"), [(256, 288, 32, 0.998), (256, 320, 64, 0.998), (128, 160, 32, 0.998)]
)
def test_balance_at_scale(experts: int, slots: int, ranks: int, least: float):
    rng = np.random.default_rng(0)
    loads = np.exp(rng.normal(0, 0.35, (8, experts)))
    rank_load = []
    for load in loads:
        phy2log = solve_balanced(load[None], slots, ranks)[0]
        per_copy = load / np.bincount(phy2log, minlength=experts)
        rank_load.append(per_copy[phy2log].reshape(ranks, -1).sum(1))
    assert layer_balancedness(rank_load).mean() > least
