from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PluginError, RoutingStatistics
from eplb_plugin.workloads.routing import ClusteredRouter

ROUTER = ClusteredRouter(2, 32, 4, num_topics=6)


def test_windows_repeat_and_differ():
    assert np.array_equal(ROUTER.window(100, 3), ROUTER.window(100, 3))
    assert not np.array_equal(ROUTER.window(100, 3), ROUTER.window(100, 4))


def test_rows_are_distinct_experts():
    rows = ROUTER.window(5000)
    assert rows.shape == (2, 5000, 4)
    assert (rows >= 0).all()
    assert (rows < 32).all()
    assert (np.diff(np.sort(rows, axis=2), axis=2) > 0).all()


def test_experts_of_a_topic_are_selected_together():
    clustered = ClusteredRouter(1, 32, 4, num_topics=4, strength=8.0, purity=1.0, skew=0.0)
    even = ClusteredRouter(1, 32, 4, strength=0.0, skew=0.0)

    def lift(router: ClusteredRouter) -> float:
        pairs = RoutingStatistics.from_topk(router.window(4000), 32).coactivation[0].astype(float)
        np.fill_diagonal(pairs, 0)
        return np.sort(pairs.ravel())[-200:].sum() / pairs.sum()

    assert lift(clustered) > 2 * lift(even)


def test_tokens_stay_within_their_groups():
    rows = ClusteredRouter(1, 32, 4, num_groups=8, top_groups=2).window(500)[0]
    assert max(len(set(row // 4)) for row in rows) <= 2


def test_drift_changes_the_load_and_not_the_model():
    now = RoutingStatistics.from_topk(ROUTER.window(8000, 0), 32).load[0]
    again = RoutingStatistics.from_topk(ROUTER.window(8000, 1), 32).load[0]
    later = RoutingStatistics.from_topk(ROUTER.drifted(1.0).window(8000, 1), 32).load[0]
    assert np.corrcoef(now, again)[0, 1] > 0.99 > np.corrcoef(now, later)[0, 1] + 0.005
    assert ROUTER.topic_mixture().sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "bad", [{"top_k": 0}, {"top_k": 33}, {"num_groups": 5}, {"num_groups": 8}, {"drift": 1.5}, {"purity": -1.0}]
)
def test_bad_settings_are_one_line(bad):
    with pytest.raises(PluginError):
        ClusteredRouter(**{"num_layers": 1, "num_experts": 32, "top_k": 6} | bad)
