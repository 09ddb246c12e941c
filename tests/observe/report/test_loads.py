"""Load of ranks: every value in the chart, one scale of colours for both, and tokens where loads do not tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.observe.report.given import Given, Placed, placed
from eplb_plugin.observe.report.loads import of_loads, rank_load, relative
from eplb_plugin.planning.score import expected_rank_load, layer_balancedness
from report_pages import charts


def test_every_value_is_in_the_chart(shown: Placed) -> None:
    before, after = (one["data"][0] for one in charts(of_loads(shown)))
    load = expected_rank_load(shown.newest.load, shown.plans["planned <i>"])
    np.testing.assert_allclose(after["z"], load / load.mean(axis=1, keepdims=True), atol=6e-4)
    assert (after["y"], after["x"]) == (["3", "5", "7"], ["0", "1", "2", "3"])
    for name in ("zmin", "zmax", "colorscale"):
        assert before[name] == after[name]
    low, high = before["zmin"], before["zmax"]
    assert low <= np.min([before["z"], after["z"]])
    assert high >= np.max([before["z"], after["z"]]) - 1e-3
    assert before["colorscale"][1] == [pytest.approx((1.0 - low) / (high - low)), "--even"]


def test_a_layer_without_load_is_even() -> None:
    assert relative(np.array([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.5, 1.5], [1.0, 1.0]]


def test_cover_needs_tokens(given: Given) -> None:
    """Where copies of one expert lie on several nodes, loads do not tell; then the window's tokens are routed."""
    found = placed(replace(given, view=given.view._replace(dispatch="cover")))
    assert found is not None
    made = found.plans["planned <i>"]
    loads = rank_load(made, found.newest)
    assert loads is not None
    assert loads.sum() == found.newest.load.sum()
    assert found.newest.sample is not None
    judged = judge_draws(found.newest.sample, made, 1, 0).balancedness
    np.testing.assert_allclose(layer_balancedness(loads), judged, atol=0.1)
    assert len(charts(of_loads(found))) == 2
    alone = placed(
        replace(given, windows={"w": replace(found.newest, sample=None)}, view=given.view._replace(dispatch="cover"))
    )
    assert alone is not None
    assert of_loads(alone) == ""
