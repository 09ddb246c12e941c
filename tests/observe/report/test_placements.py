"""Placements on the newest window: the planner's own figures, as bars with their spread over layers, and in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.report.given import Given, Placed, placed
from eplb_plugin.observe.report.placements import of_placements
from eplb_plugin.planning.score import expected_rank_load, layer_balancedness
from eplb_plugin.planning.step_balance import loads_by_quotas, loads_by_shares, step_balancedness
from report_pages import Text, charts


def test_figures_are_those_of_the_planner(shown: Placed) -> None:
    html = of_placements(shown, "weighted")
    balance, copies = charts(html)
    for trace, made in zip(balance["data"], shown.plans.values(), strict=True):
        layers = layer_balancedness(expected_rank_load(shown.newest.load, made))
        assert trace["x"] == [pytest.approx(layers.mean())]
        assert trace["error_x"]["array"] == [pytest.approx(layers.max() - layers.mean())]
        assert f"{layers.mean():.3f}" in Text(html).text
    assert balance["layout"]["xaxis"]["range"] == [0, 1.0]
    assert len(copies["data"]) == 2


def test_loads_alone_tell_no_crossings(given: Given) -> None:
    found = placed(Given({"l": RoutingStatistics(given.windows["window 0"].load)}, view=given.view))
    assert found is not None
    html = of_placements(found, "weighted")
    assert len(charts(html)) == 1
    assert "cross-node" not in html


def test_single_steps_stand_beside_the_window(given: Given, shown: Placed) -> None:
    """Where they were recorded: by the placement's shares, and evened out by `exact`; else no word of them."""
    assert "single steps" not in of_placements(shown, "weighted")
    newest = shown.newest
    assert newest.sample is not None
    steps = RoutingStatistics.from_topk(newest.sample, 32, [3, 5, 7], steps=np.arange(500) // 50).steps
    found = placed(replace(given, windows={"w": replace(newest, steps=steps)}))
    assert found is not None
    text = Text(of_placements(found, "weighted")).text
    made = found.plans["planned <i>"]
    tables, exact = (step_balancedness(by(steps, made)) for by in (loads_by_shares, loads_by_quotas))
    assert exact > tables
    assert "of single stepsof single steps with exact" in text
    assert f"{tables:.3f}{exact:.3f}" in text
