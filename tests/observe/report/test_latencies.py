"""Latencies: every percentile that all runs of an arm report, median of the runs, least and most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eplb_plugin.observe.bench_results import Run, read_runs
from eplb_plugin.observe.demo_results import read_demo
from eplb_plugin.observe.report.latencies import of_latencies
from report_pages import charts

RUN = Run("f", "vllm", 8, 1, 1.0, 1.0, {}, {}, "d", {"ttft": {50: 10.0, 99: 40.0}})


def test_median_and_spread() -> None:
    """One chart a metric and concurrency; a percentile that one run lacks is left out."""
    runs = [RUN, replace(RUN, latencies={"ttft": {50: 12.0, 90: 20.0, 99: 50.0}}), replace(RUN, concurrency=None)]
    at_8, unlimited = charts(of_latencies({"a": runs}, None))
    (trace,) = at_8["data"]
    assert (trace["x"], trace["y"]) == (["P50", "P99"], [11.0, 45.0])
    assert (trace["error_y"]["array"], trace["error_y"]["arrayminus"]) == ([1.0, 5.0], [1.0, 5.0])
    assert not unlimited["data"][0]["error_y"]["visible"]
    assert at_8["layout"]["yaxis"]["title"]["text"] == "ms"


def test_real_files_and_the_demo(demo_file: Path) -> None:
    """What `vllm bench serve` wrote; the demo's one run; nothing where nothing is reported."""
    runs = read_runs(demo_file.parent / "vllm_bench_serve_0.32.0.json")
    assert [one["data"][0]["x"] for one in charts(of_latencies({"a": runs}, None))] == [
        ["P50", "P90", "P95", "P99"]
    ] * 3
    assert len(charts(of_latencies({}, read_demo(demo_file)))) == 3
    assert of_latencies({"a": [replace(RUN, latencies={})]}, None) == ""
