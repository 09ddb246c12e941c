"""What was measured: medians with the runs' spread, paired changes with their intervals, and the demo's own table."""

from __future__ import annotations

import random
from pathlib import Path

from eplb_plugin.observe.demo_results import read_demo
from eplb_plugin.observe.paired import Round
from eplb_plugin.observe.paired_file import PairedRounds
from eplb_plugin.observe.report.given import Given
from eplb_plugin.observe.report.serving import of_demo, of_rounds, of_runs
from report_pages import Text, charts


def test_runs(given: Given) -> None:
    """A chart a figure, arms side by side, the line from least to most; verdicts in the table; names escaped."""
    html = of_runs(given.arms)
    made = charts(html)
    assert len(made) == 4
    (vanilla, plugin) = made[3]["data"]
    assert (vanilla["x"], plugin["x"]) == ([4.1], [5.1])
    assert [round(one[0], 6) for one in (plugin["error_x"]["array"], plugin["error_x"]["arrayminus"])] == [0.1, 0.1]
    text = Text(html).text
    assert "+24.4% better" in text
    assert "<b>plugin</b>" in text
    assert "requests per second" in text


def test_few_runs_are_shown_and_decide_nothing(given: Given) -> None:
    html = of_runs({name: runs[:1] for name, runs in given.arms.items()})
    assert len(charts(html)) == 4
    assert "better</span>" not in html


def paired() -> PairedRounds:
    noise, rounds = random.Random(0), []
    for start in range(4):
        for arm, factor in (("vanilla", 1.0), ("cover", 0.75)):
            figures = {"bytes": 9000.0 * factor * noise.uniform(0.99, 1.01), "slots_moved": 5.0}
            rounds.append(Round(arm, "8 in flight", start, 0, f"{arm} {start}", figures))
    return PairedRounds("vanilla", rounds, ["slots_moved"])


def test_paired_rounds() -> None:
    """The change with its interval, the reference at zero; what is only shown is in the table and not in the chart."""
    html = of_rounds(paired())
    (made,) = charts(html)
    reference, cover = made["data"]
    assert (reference["x"], reference["error_x"]["visible"]) == ([0.0], False)
    assert cover["y"] == ["bytes"]
    assert abs(cover["x"][0] + 25.0) < 2.0
    assert 0.0 < cover["error_x"]["array"][0] < 4.0
    assert "slots moved" in Text(html).text
    assert "better" in Text(html).text


def test_rounds_without_a_comparison_have_a_table_alone() -> None:
    few = paired()
    html = of_rounds(PairedRounds(few.reference, few.rounds[:4], few.shown))
    assert charts(html) == []
    assert "bytes" in Text(html).text


def test_the_demo(demo_file: Path) -> None:
    """Its own table, below bars of what is counted; every arm has the same colour in all charts."""
    html = of_demo(read_demo(demo_file))
    assert [[trace["name"] for trace in one["data"]] for one in charts(html)] == [
        ["no EPLB", "vanilla EPLB, sync", "vanilla EPLB", "eplb_plugin"]
    ] * 3
    assert "expert slots moved-42942962" in Text(html).text
