"""WindowHistory: the newest windows, what they forecast, and what is let go."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin.errors import PluginError
from eplb_plugin.planning.forecast import forecast
from eplb_plugin.runtime.window_history import WindowHistory
from eplb_plugin.statistics import RoutingStatistics

LAYERS, EXPERTS = 2, 8


def window(seed: int, tokens: int = 400) -> RoutingStatistics:
    rank = np.random.default_rng(seed).random((LAYERS, tokens, EXPERTS)) ** np.arange(1, EXPERTS + 1)
    return RoutingStatistics.from_topk(np.argsort(rank, axis=2)[:, :, :2], EXPERTS)


def filled(windows: int, kept: int) -> WindowHistory:
    history = WindowHistory(kept)
    for seed in range(windows):
        history.add(window(seed))
    return history


def test_one_window_is_its_own_forecast() -> None:
    """Nothing is changed, and nothing known of its error."""
    history = filled(1, 4)
    np.testing.assert_array_equal(history.expected().load, window(0).load)
    assert history.load_error() is None


def test_forecast_from_the_newest_windows() -> None:
    """As `forecast` of the windows kept: the older ones count for nothing."""
    history = filled(5, 3)
    expected = forecast([window(seed) for seed in (2, 3, 4)])
    np.testing.assert_allclose(history.expected().load, expected.load)
    np.testing.assert_array_equal(history.expected().sample, expected.sample)
    error = history.load_error()
    assert error is not None
    assert 0.0 < error < 1.0


def test_the_load_alone() -> None:
    """The same loads, from windows with and without pairs and tokens, which are not looked at."""
    history = filled(3, 4)
    history.add(RoutingStatistics(window(3).load, num_tokens=window(3).num_tokens))
    np.testing.assert_allclose(history.expected_load().load, history.expected().load)
    assert history.expected_load().sample is None
    assert history.expected().sample is not None  # of the windows that have one


def test_pairs_are_kept_of_the_newest_window_only() -> None:
    """They are the bulk of a window; the forecast's are scaled from the newest, and still fit its load."""
    history = filled(3, 3)
    assert [one.coactivation is None for one in history._windows] == [True, True, False]
    expected = history.expected()
    assert expected.coactivation is not None
    np.testing.assert_allclose(np.diagonal(expected.coactivation, axis1=1, axis2=2), expected.load)


def test_nothing_to_plan_from() -> None:
    """No window yet, windows that another rank recorded, or a newest one without tokens."""
    history = WindowHistory(2)
    assert not history.has_tokens
    history.add(None)
    assert not history.has_tokens
    history.add(window(0))
    assert history.has_tokens
    history.add(window(1, tokens=0))
    assert not history.has_tokens


def test_a_refused_window_is_planned_from_never() -> None:
    """Until the next one ends, the reason is raised; the windows before it are not lost."""
    history = filled(1, 2)
    history.refuse(PluginError("token-owner group 0: found, expected; fix"))
    with pytest.raises(PluginError, match="token-owner group 0"):
        _ = history.has_tokens
    history.add(window(1))
    assert history.has_tokens
    np.testing.assert_allclose(history.expected().load, forecast([window(0), window(1)]).load)
