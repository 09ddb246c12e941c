"""Popularity of experts: how much more than the mean the busiest ones of every layer are selected."""

from __future__ import annotations

import numpy as np

from ...statistics import RoutingStatistics
from .charts import axis, chart, rounded
from .markup import note, table

FEW = 0.1  # of the experts: the busiest


def of_popularity(window: RoutingStatistics, name: str) -> str:
    load = np.asarray(window.load, np.float64)
    known = load.sum(axis=1) > 0.0
    if not known.any():
        return ""
    relative = load[known] / load[known].mean(axis=1, keepdims=True)
    ordered = np.sort(relative, axis=1)[:, ::-1]
    places = list(range(1, window.num_experts + 1))
    low, middle, high = ordered.min(axis=0), np.median(ordered, axis=0), ordered.max(axis=0)
    line = {"type": "scatter", "mode": "lines", "x": places, "hoverinfo": "skip", "showlegend": True}
    edge = {**line, "line": {"width": 0}}
    traces = [
        {**edge, "y": rounded(high), "showlegend": False},
        {**edge, "y": rounded(low), "fill": "tonexty", "fillcolor": "rgba(88,140,200,0.3)",
         "name": "least to most of the layers"},
        {**line, "y": rounded(middle), "name": "median layer", "line": {"color": "#3a7fbf", "width": 2},
         "hoverinfo": "all", "hovertemplate": "place %{x}: %{y:.2f} × the mean expert"},
        {**line, "x": [1, window.num_experts], "y": [1, 1], "name": "even",
         "line": {"color": "#8b949e", "width": 1, "dash": "dot"}},
    ]  # fmt: skip
    layout = {
        "xaxis": axis("experts of a layer, most selected first"),
        "yaxis": axis("selections, × the mean expert", rangemode="tozero"),
    }
    few = max(round(FEW * window.num_experts), 1)
    rows = [
        [str(layer), str(int(row.argmax())), f"{row.max():.2f}", f"{np.sort(row)[-few:].sum() / row.sum():.1%}"]
        for layer, row in zip(window.layer_ids[known], relative, strict=True)
    ]
    heads = ["layer", "busiest expert", "× the mean expert", f"selections of the busiest {few}"]
    busiest = f"{ordered[:, 0].min():.1f} to {ordered[:, 0].max():.1f}"
    caption = f"Experts by selections: the busiest one of a layer has {busiest} × the mean"
    return chart(caption, traces, layout, table(heads, rows)) + note(f"Window {name}.")
