"""Moves: counted as the planner counts them, and a flow that is what the plugin's own schedule sends."""

from __future__ import annotations

from dataclasses import replace

from eplb_plugin.migration.schedule import schedule
from eplb_plugin.observe.report.given import BEFORE, Given, Placed, placed
from eplb_plugin.observe.report.moves import of_moves
from eplb_plugin.planning.score import moved_slots
from report_pages import Text, charts


def test_the_flow_is_the_schedule(shown: Placed) -> None:
    html = of_moves(shown)
    (made,) = charts(html)
    old, new = (shown.plans[name].placement for name in (BEFORE, "planned <i>"))
    topology = shown.plans[BEFORE].topology
    flow = schedule(old.phy2log, new.phy2log, topology).node_traffic(1)
    link = made["data"][0]["link"]
    drawn = dict(zip(zip(link["source"], link["target"], strict=True), link["value"], strict=True))
    assert drawn == {(a, 2 + b): flow[a, b] for a in (0, 1) for b in (0, 1) if flow[a, b]}
    total = int(moved_slots(new, old, topology).sum())
    text = Text(html).text
    assert f"engine's start → planned <i>{total}{total / 108:.1%}" in text
    assert f"{flow[0, 1] + flow[1, 0]} of {flow.sum()} rows of weights cross nodes" in text


def test_a_placement_that_stays(given: Given, shown: Placed) -> None:
    """No flow is drawn where nothing moves; without a placement there is nothing to compare."""
    same = placed(replace(given, placements={"same": shown.plans[BEFORE].placement}))
    assert same is not None
    assert charts(of_moves(same)) == []
    assert "same00.0%" in Text(of_moves(same)).text
    alone = placed(replace(given, placements={}))
    assert alone is not None
    assert of_moves(alone) == ""
