"""The report: sections in their order, one file, the same bytes again, and a browser that asks for nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from browser import CHROMIUM, Screen, visit
from eplb_plugin import PluginError, RoutingStatistics
from eplb_plugin.observe.advice_file import Advice
from eplb_plugin.observe.demo_results import read_demo
from eplb_plugin.observe.report import Given, report
from report_pages import BEST, FOUND, LOG, Text, charts

pytest.importorskip("plotly", reason="plotly is not installed: pip install -e .[report]")
SECTIONS = [
    "The result", "What to do next", "Over time", "Load of ranks", "Experts used together", "Moves",
    "Popularity of experts", "Latencies", "What was recorded",
]  # fmt: skip


@pytest.fixture(scope="module")
def everything(given: Given, demo_file: Path) -> Given:
    advice = Advice.model_validate({
        "recording": "w", "enable": True, "best": BEST, "reasons": ["r"], "settings": "policy: affinity",
        "outcomes": [FOUND],
    })  # fmt: skip
    return replace(given, advice=advice, rebalances={"m": LOG}, demo=read_demo(demo_file))


def headings(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def test_the_result_comes_first(everything: Given) -> None:
    """Then what to do next; every section is there; names are escaped; the title too."""
    html = report("A <title>", everything)
    assert headings(html) == SECTIONS
    text = Text(html).text
    for part in ("A <title>", "<b>plugin</b>", "planned <i>", "Enable EPLB with", "The demo"):
        assert part in text


def test_equal_input_gives_equal_bytes(everything: Given) -> None:
    assert report("t", everything) == report("t", everything)


def test_what_is_missing_names_its_command(given: Given) -> None:
    """Benchmarks without traces, loads without tokens: the sections that are left out, each with one line."""
    html = report("t", Given(arms=given.arms))
    assert headings(html) == ["The result", "Latencies", "What was recorded", "Not in this report"]
    assert "eplb-plugin advise TRACE" in Text(html).text
    loads = report("t", Given({"l": RoutingStatistics(given.windows["window 0"].load)}, view=given.view))
    assert "Load of ranks" in headings(loads)
    assert "Experts used together: eplb-plugin record" in Text(loads).text


def test_nothing_is_refused() -> None:
    with pytest.raises(PluginError, match="found nothing to show"):
        report("t", Given())


def test_plotly_knows_every_name(everything: Given) -> None:
    """All charts of a report, held to the classes of plotly's Python package."""
    from plotly.graph_objects import Figure

    found = charts(report("t", everything))
    assert len(found) > 15
    for one in found:
        for trace in one["data"]:
            trace.pop("colorscale", None)  # the reader's colours come in the browser
        Figure(one)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
LOOK = """(async () => {
  await drawn;
  const inside = box => box.left >= -0.5 && box.right <= innerWidth + 0.5;
  return [...document.querySelectorAll(".chart")].map(node => {
    const frame = node.getBoundingClientRect(), words = [...node.querySelectorAll("svg text")];
    const cut = words.filter(one => {
      const box = one.getBoundingClientRect();
      const out = box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
      return one.textContent && out;
    });
    const axes = ["x", "y"].map(name => node._fullLayout[name + "axis"]);
    const named = axes.every(axis => !axis || !axis.visible || axis.title.text || axis.type === "category");
    return {
      size: frame.width * frame.height > 10000, inside: inside(frame), cut: cut.map(one => one.textContent),
      named: named || node.data[0].type === "sankey",
      back: node._fullLayout.paper_bgcolor, said: node.getAttribute("aria-label").length > 5,
    };
  }).concat({page: document.documentElement.scrollWidth <= innerWidth});
})()"""
HOVER = """(async () => {
  await drawn;
  const node = [...document.querySelectorAll(".chart")].find(one => one.data[0].type === "heatmap");
  Plotly.Fx.hover(node, [{xval: 2, yval: 1}]);
  await new Promise(resolve => setTimeout(resolve, 100));
  return [node.querySelector(".hoverlayer").textContent, node.data[0].z[1][2]];
})()"""


@needs_browser
@pytest.mark.parametrize("screen", [Screen(1300), Screen(400, dark=True)], ids=["wide and light", "narrow and dark"])
def test_in_a_browser(tmp_path: Path, everything: Given, screen: Screen) -> None:
    """Real Chromium: nothing logged, nothing requested but the file; charts are drawn, inside the page, in the reader's
    scheme, with named axes and no text cut off."""
    page = tmp_path / "report.html"
    page.write_text(report("t", everything))
    seen = visit(page, LOOK, tmp_path / "profile", screen)
    assert seen.problems == []
    assert {url for url in seen.requests if not url.startswith("data:")} == {page.as_uri()}
    *drawn, whole = seen.answer
    assert len(drawn) > 15
    back = "#161b22" if screen.dark else "#f6f8fa"
    expected = {"size": True, "inside": True, "cut": [], "named": True, "back": back, "said": True}
    assert drawn == [expected] * len(drawn)
    assert whole == {"page": True}


@needs_browser
def test_pointing_at_a_cell_shows_its_value(tmp_path: Path, given: Given) -> None:
    page = tmp_path / "report.html"
    page.write_text(report("t", replace(given, arms={})))
    text, value = visit(page, HOVER, tmp_path / "profile").answer
    assert text == f"layer 5, rank 2: {value:.3f} × the layer's mean"


@needs_browser
def test_the_browser_sees_errors_and_requests(tmp_path: Path) -> None:
    """The check above can fail: a page that logs an error, throws, and asks for a picture elsewhere."""
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); throw new Error("x")</script>')
    seen = visit(page, "1", tmp_path / "profile")
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert len(seen.problems) >= 2
