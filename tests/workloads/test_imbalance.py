"""Imbalance: the factor that was asked for, in the loads and in routed tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError
from eplb_plugin.workloads.families import FAMILIES
from eplb_plugin.workloads.imbalance import (
    MOST_OF_TOKENS,
    fitted_router,
    imbalance_factor,
    load_error,
    loads_at,
    rank_load,
    reachable_factor,
)
from eplb_plugin.workloads.routing import ClusteredRouter
from strategies import QUICK

LOGNORMAL = FAMILIES["lognormal"]


def counts(window: np.ndarray, experts: int) -> np.ndarray:
    return np.stack([np.bincount(rows.ravel(), minlength=experts) for rows in window])


def test_factor_by_hand() -> None:
    """max / mean over ranks of contiguous experts; a layer without load is even."""
    load = [[1, 2, 3, 6], [0, 0, 0, 0]]
    np.testing.assert_array_equal(rank_load(load, 2), [[3, 9], [0, 0]])
    np.testing.assert_allclose(imbalance_factor(load, 2), [9 / 6, 1.0])


@QUICK
@given(
    name=st.sampled_from(sorted(FAMILIES)), ranks=st.sampled_from([1, 2, 8, 16]), per_rank=st.sampled_from([1, 3, 8]),
    top_k=st.integers(1, 8), share=st.floats(0.0, 1.0), seed=st.integers(0, 5),
)  # fmt: skip
def test_every_factor_in_the_reachable_range_is_reached(
    name: str, ranks: int, per_rank: int, top_k: int, share: float, seed: int
) -> None:
    """Within 0.1 %, in every layer, with no expert above what tokens with distinct experts can give it."""
    experts = ranks * per_rank
    top_k = min(top_k, experts)
    most = reachable_factor(FAMILIES[name], experts, ranks, top_k, 2, seed)
    wanted = 1.0 + share * (most - 1.0)
    target = loads_at(wanted, FAMILIES[name], experts, ranks, top_k, 2, seed)
    np.testing.assert_allclose(target.factor, wanted, rtol=1e-3)
    np.testing.assert_allclose(imbalance_factor(target.shares, ranks), target.factor)
    np.testing.assert_allclose(target.shares.sum(axis=1), 1.0)
    assert target.shares.max() * top_k <= max(MOST_OF_TOKENS, top_k / experts) + 1e-9


@pytest.mark.parametrize("factor", [0.5, 3.5, float("nan"), float("inf")])
def test_factors_out_of_reach_are_refused_with_the_range(factor: float) -> None:
    most = reachable_factor(LOGNORMAL, 64, 16, 6, 3)
    with pytest.raises(PluginError, match=rf"expected 1\.00\.\.{most:.2f}, what lognormal reaches"):
        loads_at(factor, LOGNORMAL, 64, 16, 6, 3)


def test_experts_that_ranks_do_not_divide_are_refused() -> None:
    with pytest.raises(PluginError, match="found 3 ranks, expected a divisor of 64"):
        loads_at(1.5, LOGNORMAL, 64, 3, 6, 1)


@pytest.mark.parametrize("factor", [1.0, 1.6, 2.2])
@pytest.mark.parametrize(
    "clusters",
    [{"strength": 0.0}, {"strength": 1.5}, {"strength": 3.0, "purity": 0.8}, {"num_groups": 4, "top_groups": 2}],
    ids=["none", "overlapping", "pure", "groups"],
)
def test_routed_tokens_have_the_loads(factor: float, clusters: dict[str, float]) -> None:
    """Distinct experts in every row, expert loads within 1 %, the rank factor within 2 %; whatever the clusters."""
    target = loads_at(factor, LOGNORMAL, 64, 16, 6, 2)
    router = fitted_router(ClusteredRouter(2, 64, 6, **clusters), target.shares, 3000)
    window = router.window(3000)
    assert (np.diff(np.sort(window, axis=2), axis=2) > 0).all()
    load = counts(window, 64)
    assert load_error(load, target.shares).max() < 0.01
    np.testing.assert_allclose(imbalance_factor(load, 16), factor, rtol=0.02)


def test_later_windows_keep_the_loads_until_traffic_drifts() -> None:
    """Another seed: the same loads but for chance. Drift: other loads, and clusters stay."""
    target = loads_at(1.8, LOGNORMAL, 64, 16, 6, 2)
    router = fitted_router(ClusteredRouter(2, 64, 6, strength=3.0, num_topics=6), target.shares, 6000)
    later = load_error(counts(router.window(6000, 1), 64), target.shares)
    drifted = load_error(counts(router.drifted(1.0).window(6000, 1), 64), target.shares)
    assert later.max() < 0.04 < drifted.min()


def test_load_error_by_hand() -> None:
    np.testing.assert_allclose(load_error([[10, 10, 20], [0, 0, 0]], np.array([[0.5, 0.25, 0.25]] * 2)), [0.25, 0.5])
