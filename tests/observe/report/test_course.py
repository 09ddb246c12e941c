"""Over time: a rebalance is a step from what was served to what is planned; a window is judged by every plan."""

from __future__ import annotations

from dataclasses import replace

from eplb_plugin.observe.report.course import of_course
from eplb_plugin.observe.report.given import Given, Placed, placed
from eplb_plugin.planning.score import balancedness, expected_rank_load
from report_pages import LOG, Text, charts


def test_rebalances_are_steps() -> None:
    """Marked where they happened, with the slots they moved; copies where there are nodes."""
    html = of_course(Given(rebalances={"/models/m": LOG}), None)
    balance, copies = charts(html)
    path, served, planned = balance["data"]
    assert (path["x"], path["y"]) == ([1, 1, 2, 2], [0.7, 0.99, 0.95, 0.98])
    assert (served["y"], planned["y"]) == ([0.7, 0.95], [0.99, 0.98])
    assert "60 of 144 slots move" in served["text"][0]
    assert [(one["x0"], one["x1"]) for one in balance["layout"]["shapes"]] == [(1, 1), (2, 2)]
    assert copies["data"][0]["y"] == [2.7, 2.1, 2.2, 2.0]
    assert "m, as the server's log tells it" in Text(html).text
    alone = of_course(Given(rebalances={"m": [one._replace(copies=None) for one in LOG]}), None)
    assert len(charts(alone)) == 1


def test_windows(given: Given, shown: Placed) -> None:
    """A line per placement over the windows, oldest first; one window has no course."""
    html = of_course(given, shown)
    balance, copies = charts(html)
    assert [trace["name"] for trace in balance["data"]] == ["engine's start", "planned &lt;i&gt;"]
    made = shown.plans["planned <i>"]
    expected = [balancedness(expected_rank_load(window.load, made)) for window in shown.windows.values()]
    assert balance["data"][1]["y"] == expected
    assert len(copies["data"][1]["y"]) == 2
    assert "2 windows, oldest first: window 0, window 1" in Text(html).text
    one = replace(given, windows={"w": shown.newest})
    assert of_course(one, placed(one)) == ""
