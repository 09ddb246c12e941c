"""The report: figures of the planner, one file, the same bytes again, and a browser that asks for nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from browser import CHROMIUM, visit
from eplb_plugin import Placement, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.observe.bench_results import Run, read_runs
from eplb_plugin.observe.report import View, report
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import balancedness, expected_rank_load
from eplb_plugin.planning.step_balance import loads_by_quotas, loads_by_shares, step_balancedness
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import vllm_result

ROUTER = ClusteredRouter(3, 32, 4, num_topics=4, purity=0.8, strength=3.0, skew=0.8)
TOPOLOGY = Topology(2, 2, 9)
SHAPE = View(nodes=2, ranks_per_node=2)
Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def windows() -> dict[str, RoutingStatistics]:
    return {f"window {seed}": RoutingStatistics.from_topk(ROUTER.window(500, seed), 32, [3, 5, 7]) for seed in (0, 1)}


@pytest.fixture(scope="module")
def placements(windows: dict[str, RoutingStatistics]) -> dict[str, Placement]:
    return {"planned <i>": plan(windows["window 0"], TOPOLOGY, policy="affinity", dispatch="hash").placement}


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, list[Run]]:
    for qps in (4.0, 5.0):
        lines = [json.dumps(vllm_result(qps + 0.05 * number)) for number in range(5)]
        (tmp_path / f"{qps}.jsonl").write_text("\n".join(lines))
    return {"vanilla": read_runs(tmp_path / "4.0.jsonl"), "<b>plugin</b>": read_runs(tmp_path / "5.0.jsonl")}


class Text(HTMLParser):
    """What a reader sees, and whether every element is closed."""

    VOID = ("meta", "link", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text += data


def test_figures_are_those_of_the_planner(windows, placements, arms) -> None:
    """Balancedness of the start and the plan on the newest window; every section is there; names are escaped."""
    text = Text(report("A <title>", windows, placements, arms, SHAPE)).text
    newest = windows["window 1"]
    for placement in (linear_placement(3, 32, 36, [3, 5, 7]), placements["planned <i>"]):
        expected = balancedness(expected_rank_load(newest.load, plan_of(placement, TOPOLOGY, "weighted")))
        assert f"{expected:.3f}" in text
    for part in ("A <title>", "Load of ranks", "Co-activation", "over windows", "Moves", "Serving", "<b>plugin</b>"):
        assert part in text
    assert "better" in text


def test_single_steps_stand_beside_the_window(windows, placements) -> None:
    """Where they were recorded: by the placement's shares, and evened out by `exact`; else no word of them."""
    newest = windows["window 1"]
    assert "single steps" not in report("t", {"w": newest}, placements, {}, SHAPE)
    steps = RoutingStatistics.from_topk(newest.sample, 32, [3, 5, 7], steps=np.arange(500) // 50).steps
    text = Text(report("t", {"w": replace(newest, steps=steps)}, placements, {}, SHAPE)).text
    made = plan_of(placements["planned <i>"], TOPOLOGY, "weighted")
    tables, exact = (step_balancedness(by(steps, made)) for by in (loads_by_shares, loads_by_quotas))
    assert exact > tables
    assert "of single stepsof single steps with exact" in text
    assert f"{tables:.3f}{exact:.3f}" in text


def test_equal_input_gives_equal_bytes(windows, placements, arms) -> None:
    made = {report("t", windows, placements, arms, SHAPE) for _ in range(2)}
    assert len(made) == 1


def test_every_heatmap_value_is_in_the_file(windows, placements) -> None:
    html = report("t", windows, placements, {}, SHAPE)
    shown = json.loads(re.search(r'id="load1">(.*?)</script>', html).group(1))
    load = expected_rank_load(windows["window 1"].load, plan_of(placements["planned <i>"], TOPOLOGY, "weighted"))
    np.testing.assert_allclose(shown["values"], load / load.mean(axis=1, keepdims=True), atol=6e-4)
    assert (shown["rows"], shown["columns"]) == ([3, 5, 7], [0, 1, 2, 3])


def test_parts_stand_alone(windows, arms) -> None:
    """Benchmarks without traces, loads without tokens, one window without placements."""
    assert "Placements" not in report("t", {}, {}, arms)
    loads = {"l": RoutingStatistics(windows["window 0"].load)}
    text = Text(report("t", loads, {}, {}, SHAPE)).text
    assert "Load of ranks" in text
    assert "Co-activation" not in text
    assert "Moves" not in text


def test_wrong_input_is_refused(windows, placements) -> None:
    other = RoutingStatistics(np.ones((3, 16)), layer_ids=[3, 5, 7])
    cases = [
        (({}, {}, {}), View(), "nothing to show"),
        (({}, placements, {}), View(), "placements alone"),
        (({"o": other}, placements, {}), SHAPE, "planned <i>: found 32 experts"),
        ((windows, placements, {}), View(nodes=5), "a divisor of 36 slots"),
        ((windows, placements, {}), SHAPE._replace(layer=4), "--layer: found 4"),
        ((windows, {**placements, "b": linear_placement(3, 32, 40, [3, 5, 7])}, {}), SHAPE, "b: found 40 slots"),
    ]
    for (given, placed, runs), view, line in cases:
        with pytest.raises(PluginError) as caught:
            report("t", given, placed, runs, view)
        assert line in str(caught.value)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
POINT = """(() => {
  const svg = document.querySelector("svg[data-values]"), box = svg.getBoundingClientRect();
  const at = {clientX: box.left + box.width * 0.6, clientY: box.top + box.height * 0.5};
  svg.dispatchEvent(new MouseEvent("mousemove", at));
  const pictures = [...document.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  return [svg.parentElement.querySelector("output").textContent, pictures.map(one => one.width * one.height > 1000)];
})()"""


@needs_browser
def test_in_a_browser(tmp_path: Path, windows, placements, arms) -> None:
    """Real Chromium: nothing logged, nothing requested but the file; pointing at a cell shows layer, rank and value."""
    html = report("t", windows, placements, arms, SHAPE)
    page = tmp_path / "report.html"
    page.write_text(html)
    seen = visit(page, POINT, tmp_path / "profile")
    assert seen.problems == []
    assert {url for url in seen.requests if not url.startswith("data:")} == {page.as_uri()}
    shown = json.loads(re.search(r'id="load0">(.*?)</script>', html).group(1))
    text, drawn = seen.answer
    assert text == f"layer 5, rank 2: {shown['values'][1][2]}"
    assert drawn == [True] * 5


@needs_browser
def test_the_browser_sees_errors_and_requests(tmp_path: Path) -> None:
    """The check above can fail: a page that logs an error, throws, and asks for a picture elsewhere."""
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); throw new Error("x")</script>')
    seen = visit(page, "1", tmp_path / "profile")
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert len(seen.problems) >= 2
