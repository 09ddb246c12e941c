"""The next window from a history: what a forecast must be, and that it follows noise, drift and change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import PluginError, RoutingStatistics, Topology, forecast, plan
from eplb_plugin.planning.forecast import forecast_error, window_weights
from eplb_plugin.planning.score import balancedness, expected_rank_load
from strategies import QUICK, loads, statistics

LAYERS, EXPERTS = 8, 128


def rates(seed: int) -> NDArray[np.float64]:
    return np.exp(0.4 * np.random.default_rng(seed).standard_normal((LAYERS, EXPERTS)))


def observed(rate: NDArray[np.float64], seed: int, noise: float = 0.15, selections: int = 500) -> NDArray[np.int64]:
    """Counts of one window: Poisson around a rate that deviates by `noise`."""
    rng = np.random.default_rng([seed, 1])
    return rng.poisson(selections * rate * np.exp(noise * rng.standard_normal(rate.shape)))


def windows(*per_window: NDArray[np.float64]) -> list[RoutingStatistics]:
    return [RoutingStatistics(observed(rate, seed)) for seed, rate in enumerate(per_window)]


def stacked(history: list[RoutingStatistics]) -> NDArray[np.float64]:
    return np.stack([window.load for window in history]).astype(float)


@QUICK
@given(st.data())
def test_any_history_gives_statistics(data: st.DataObject):
    """Zero loads, empty windows, missing pairs or samples: within the range of what was seen, diagonal = load."""
    layers, experts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    made = st.one_of(statistics(layers, experts), loads(layers, experts).map(RoutingStatistics))
    history = data.draw(st.lists(made, min_size=1, max_size=5))
    expected = forecast(history)
    assert expected.load.shape == (layers, experts)
    load = stacked(history)
    sums, filled = load.sum(2), load.any(2)
    np.testing.assert_allclose(expected.parts.sum(0), expected.load)
    assert expected.parts.any(axis=(1, 2)).all()
    assert (expected.load.sum(1) <= sums.max(0) * (1 + 1e-9)).all()
    assert np.array_equal(expected.load.any(1), filled.any(0))
    if expected.coactivation is not None:
        np.testing.assert_allclose(np.diagonal(expected.coactivation, axis1=1, axis2=2), expected.load)
    assert (expected.coactivation is None) == all(w.coactivation is None for w in history)
    lean = forecast(history, pairs=False)
    assert (lean.coactivation is None) == (expected.coactivation is None or expected.sample is not None)
    for name in ("load", "sample", "num_tokens", "parts", "steps"):
        np.testing.assert_array_equal(getattr(lean, name), getattr(expected, name))
    error = forecast_error(history)
    assert error.shape == (layers,)
    assert (np.isnan(error) | (error >= 0)).all()


@QUICK
@given(st.data())
def test_weights_are_a_mixture(data: st.DataObject):
    """Weights sum to 1 and are never negative; a window without tokens has none; scaling all counts changes little."""
    count, layers, experts = (data.draw(st.integers(1, n)) for n in (6, 3, 8))
    load = np.stack([data.draw(loads(layers, experts)) for _ in range(count)]).astype(float)
    weights = window_weights(load)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    empty = ~load.any((1, 2))
    assert empty.all() or not weights[empty].any()


def test_one_window_is_its_own_forecast():
    """One window: forecast unchanged, sample and pairs included; the error is unknown."""
    rows = np.array([[[0, 1], [1, 2], [-1, -1]], [[2, 0], [0, 1], [1, 0]]])
    only = RoutingStatistics.from_topk(rows, 3, layer_ids=[3, 4])
    expected = forecast([only])
    np.testing.assert_allclose(expected.load, only.load)
    np.testing.assert_allclose(expected.coactivation, only.coactivation)
    assert np.array_equal(expected.sample, only.sample)
    assert np.array_equal(expected.layer_ids, [3, 4])
    assert np.array_equal(expected.num_tokens, only.num_tokens)
    assert np.isnan(forecast_error([only])).all()


def test_noise_is_averaged():
    """Windows that differ by noise alone count about the same."""
    weights = window_weights(stacked(windows(*[rates(0)] * 8)))
    assert weights.min() > 0.08
    assert weights.max() < 0.18


@pytest.mark.parametrize("since", [1, 2, 4])
def test_other_traffic_is_forgotten(since: int):
    """After an abrupt change the windows before it hardly count, and those after it count equally."""
    weights = window_weights(stacked(windows(*[rates(0)] * (8 - since), *[rates(1)] * since)))
    assert weights[:-since].sum() < 0.1
    assert weights[-since:].min() > 0.6 / since


def test_traffic_that_returns_is_remembered():
    """Old windows that look like the newest one count, the ones between do not."""
    weights = window_weights(stacked(windows(*[rates(0)] * 3, *[rates(1)] * 3, *[rates(0)] * 2)))
    assert weights[3:6].sum() < 0.1
    assert weights[:3].sum() > 0.4


def test_drift_prefers_new_windows():
    """Under a slow drift weights fall with age."""
    path = [rates(0) * (rates(1) / rates(0)) ** (t / 16) for t in range(8)]
    weights = window_weights(stacked(windows(*path)))
    assert weights[:4].sum() < weights[4:].sum() / 2


def test_a_short_window_counts_less():
    """A window of few tokens is noisier, so that it weighs less than its neighbours."""
    load = np.stack([observed(rates(0), seed, 0.05, 20 if seed == 3 else 2000) for seed in range(6)]).astype(float)
    weights = window_weights(load)
    assert weights[3] < weights.max() / 4


def test_error_is_the_noise():
    """±15 % noise: a forecast from 8 windows errs by about 16 %, and says so."""
    error = forecast_error(windows(*[rates(0)] * 9))
    assert error.mean() == pytest.approx(0.17, abs=0.02)


def test_plans_from_a_forecast_hold_better():
    """Held-out balance: at least 2 points above a plan from the last window alone, under noise."""
    history, topology = windows(*[rates(0)] * 9), Topology(2, 8, 9)

    def held_out(known: RoutingStatistics) -> float:
        made = plan(known, topology, policy="balanced", dispatch="hash")
        return balancedness(expected_rank_load(history[-1].load, made))

    assert held_out(forecast(history[:-1])) > held_out(history[-2]) + 0.02


def test_sample_follows_the_weights():
    """Rows come from every window that counts, evenly; windows before a change give hardly any."""
    rng = np.random.default_rng(0)
    taste = np.exp(rng.standard_normal((2, 64)))

    def window(kind: int) -> RoutingStatistics:
        scores = np.log(taste[kind]) + rng.gumbel(size=(4, 600, 64))
        return RoutingStatistics.from_topk(np.argsort(-scores, axis=2)[:, :, :4], 64)

    history = [window(kind) for kind in (0, 0, 0, 1, 1, 1)]
    expected = forecast(history)
    assert expected.sample is not None
    assert 590 <= expected.sample.shape[1] <= 610
    share = np.bincount(expected.sample.ravel(), minlength=64) / expected.sample.size
    late = sum(w.load.sum(0) for w in history[3:])
    np.testing.assert_allclose(share, late / late.sum(), atol=0.01)


def test_refusals_are_one_line():
    window, other = RoutingStatistics(np.ones((1, 4))), RoutingStatistics(np.ones((1, 5)))
    for history in ([], [window, other], [window, RoutingStatistics(np.ones((1, 4)), layer_ids=[7])]):
        for function in (forecast, forecast_error):
            with pytest.raises(PluginError, match="history: found"):
                function(history)
