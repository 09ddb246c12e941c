"""Latencies by arm: the percentiles that load generators report, from the median to the tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from ..bench_results import Run
from ..demo_results import DemoResults
from .charts import axis, chart, label, side_by_side
from .markup import table

TITLES = {
    "ttft": "Time to first token", "tpot": "Time per output token", "itl": "Time between tokens",
    "e2el": "Whole request",
}  # fmt: skip
Tail = Mapping[int, Sequence[float]]  # ms by percentile, one per run


def of_latencies(arms: Mapping[str, Sequence[Run]], demo: DemoResults | None) -> str:
    points = sorted({run.concurrency for runs in arms.values() for run in runs}, key=lambda one: one or float("inf"))
    charts = []
    for point in points:
        at = "no limit" if point is None else f"{point} in flight"
        for metric in TITLES:
            tails = {
                arm: _tail([run for run in runs if run.concurrency == point], metric) for arm, runs in arms.items()
            }
            charts.append(_chart(f"{TITLES[metric]}, {at}", tails))
    if demo is not None:
        for metric in demo.metrics:
            tails = {
                arm.title: {share: [arm.figures[f"{metric}_p{share}"]] for share in demo.percentiles}
                for arm in demo.arms
            }
            charts.append(_chart(f"{TITLES[metric]}, the demo's one run", tails))
    return side_by_side(charts) if any(charts) else ""


def _tail(runs: Sequence[Run], metric: str) -> Tail:
    """Percentiles that every run reports."""
    if not runs:
        return {}
    shares = sorted(set.intersection(*(set(run.latencies.get(metric, {})) for run in runs)))
    return {share: [run.latencies[metric][share] for run in runs] for share in shares}


def _chart(caption: str, tails: Mapping[str, Tail]) -> str:
    known = {arm: tail for arm, tail in tails.items() if tail}
    if not known:
        return ""
    traces, rows = [], []
    for arm, tail in known.items():
        middle = [median(values) for values in tail.values()]
        spread = {
            "type": "data", "symmetric": False, "width": 4, "visible": any(len(values) > 1 for values in tail.values()),
            "array": [max(values) - one for values, one in zip(tail.values(), middle, strict=True)],
            "arrayminus": [one - min(values) for values, one in zip(tail.values(), middle, strict=True)],
        }  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": label(arm), "x": [f"P{share}" for share in tail],
            "y": middle, "error_y": spread, "showlegend": True,
            "hovertemplate": "%{x}: %{y:.4g} ms<extra>" + label(arm) + "</extra>",
        })  # fmt: skip
        rows += [
            [escape(arm), f"P{share}", f"{one:.4g}", f"{min(values):.4g}", f"{max(values):.4g}"]
            for (share, values), one in zip(tail.items(), middle, strict=True)
        ]
    layout = {"xaxis": axis("percentile of requests", type="category"), "yaxis": axis("ms", rangemode="tozero")}
    heads = ["arm", "percentile", "median of the runs, ms", "least", "most"]
    return chart(caption, traces, layout, table(heads, rows))
