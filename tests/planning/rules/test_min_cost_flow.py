"""The flow that splits experts among their copies: against the least peak there can be, and no cheaper way to it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.rules.min_cost_flow import CAP_STEP, LEAST_CAP, TIE, Copies, list_by_expert, split_flow
from strategies import QUICK


def least_peak(load, copies: Copies, bins: int) -> float:
    """By the theorem of max-flow and min-cut: some set of bins must carry what can go nowhere else."""
    reach = [set(copies.bin[copies.expert == expert].tolist()) for expert in range(len(load))]
    sets = (set(some) for size in range(1, bins + 1) for some in combinations(range(bins), size))
    return max(sum(load[e] for e in range(len(load)) if reach[e] <= some) / len(some) for some in sets)


def cheapest_way(cost, copies: Copies, share, bins: int):
    """[bins, bins] least price to send load from one bin to another, over any bins between (Floyd and Warshall)."""
    price = np.full((bins, bins), np.inf)
    for source, one in np.argwhere(share > 1e-6):
        for other in np.flatnonzero(copies.expert == copies.expert[one]):
            ends = copies.bin[one], copies.bin[other]
            price[ends] = min(price[ends], cost[source, other] - cost[source, one])
    for middle in range(bins):
        price = np.minimum(price, price[:, middle : middle + 1] + price[middle : middle + 1])
    return price


@QUICK
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 8), st.integers(0, 10), st.integers(1, 3))
def test_bins_are_as_even_as_copies_allow_and_no_way_there_is_cheaper(
    seed: int, bins: int, experts: int, extra: int, sources: int
):
    """No bin is far above the least peak; and no circle of reroutings, which leaves all bins as they are, would pay."""
    rng = np.random.default_rng(seed)
    expert = np.concatenate([np.arange(experts), rng.integers(0, experts, extra)])
    bin_of, load = rng.integers(0, bins, len(expert)), rng.random(experts) + 0.01
    copies, cost = list_by_expert(expert, bin_of, experts), rng.random((sources, len(expert)))
    share = split_flow(load, cost, copies, bins)
    carried = share.mean(axis=0) * load[expert]
    bin_load = np.bincount(bin_of, weights=carried, minlength=bins)
    over = least_peak(load, copies, bins) / bin_load.mean() - 1.0  # met as closely as caps are lowered
    assert bin_load.max() <= bin_load.mean() * (1.0 + max(over, LEAST_CAP) / CAP_STEP + 1e-5)
    assert np.diagonal(cheapest_way(cost, copies, share, bins)).min() >= -bins * 17 * TIE


@QUICK
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 10), st.integers(0, 12))
def test_flow_splits_every_expert_and_levels_bins(seed: int, bins: int, experts: int, extra: int):
    rng = np.random.default_rng(seed)
    expert = np.concatenate([np.arange(experts), rng.integers(0, experts, extra)])
    bin_of, load = rng.integers(0, bins, len(expert)), rng.random(experts) + 0.01
    copies = list_by_expert(expert, bin_of, experts)
    share = split_flow(load, rng.random((2, len(expert))), copies, bins)
    assert share.min() >= 0.0
    for source in share:
        np.testing.assert_allclose(np.bincount(expert, weights=source), 1.0)
    everywhere = np.tile(np.arange(bins), experts)
    copies = list_by_expert(np.repeat(np.arange(experts), bins), everywhere, experts)
    share = split_flow(load, rng.random((2, experts * bins)), copies, bins)
    bin_load = np.bincount(everywhere, weights=share.mean(axis=0) * np.repeat(load, bins))
    assert bin_load.max() <= bin_load.mean() * 1.001


def test_flow_without_pressure_takes_the_cheapest():
    copies = list_by_expert(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 2)
    share = split_flow(np.ones(2), np.array([[0.0, 1.0, 1.0, 0.0]]), copies, 2)
    assert share.tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_copies_are_listed_by_expert():
    copies = list_by_expert(np.array([2, 0, 2, 1]), np.array([5, 6, 7, 8]), 4)
    assert copies.start.tolist() == [0, 1, 2, 4, 4]
    assert copies.listed.tolist() == [1, 3, 0, 2]
