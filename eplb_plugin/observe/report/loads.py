"""Load of ranks, layer by layer, before and after, in the same colours."""

from __future__ import annotations

import numpy as np

from ...dispatch.rules import route
from ...plan_types import Plan
from ...planning.replicas.at_home import known_from_loads
from ...planning.score import count_slots, expected_rank_load
from ...statistics import RoutingStatistics
from .charts import Numbers, axis, chart, rounded, side_by_side
from .given import Placed
from .markup import note, table


def of_loads(shown: Placed) -> str:
    """Empty where neither loads nor tokens tell what ranks get."""
    found = {label: rank_load(made, shown.newest) for label, made in shown.ends.items()}
    loads = {label: relative(one) for label, one in found.items() if one is not None}
    if len(loads) < len(found):
        return ""
    most = max(max(float(np.abs(one - 1.0).max()) for one in loads.values()), 1e-3)
    least = min(most, 1.0)  # no rank has less than nothing
    colours = [[0, "--cool"], [least / (least + most), "--even"], [1, "--warm"]]
    ticks = [1.0 - least, 1.0 - least / 2.0, 1.0, 1.0 + most / 2.0, 1.0 + most]
    layers = [str(one) for one in shown.newest.layer_ids]
    charts = []
    for label, shares in loads.items():
        ranks = [str(rank) for rank in range(shares.shape[1])]
        trace = {
            "type": "heatmap", "x": ranks, "y": layers, "z": rounded(shares), "colorscale": colours,
            "zmin": 1.0 - least, "zmax": 1.0 + most, "xgap": 1, "ygap": 1,
            "colorbar": {
                "title": {"text": "× mean of the layer", "side": "right"}, "thickness": 12, "outlinewidth": 0,
                "tickvals": ticks, "ticktext": [f"{one:.2f}" for one in ticks],
            },
            "hovertemplate": "layer %{y}, rank %{x}: %{z:.3f} × the layer's mean<extra></extra>",
        }  # fmt: skip
        layout = {
            "height": min(200 + 26 * len(layers), 620), "xaxis": axis("rank", type="category", showgrid=False),
            "yaxis": axis("layer", type="category", autorange="reversed", showgrid=False),
        }  # fmt: skip
        caption = f"{label}: busiest rank {shares.max():.2f} × the mean of its layer"
        rows = [[name, *(f"{one:.3f}" for one in row)] for name, row in zip(layers, shares, strict=True)]
        charts.append(chart(caption, [trace], layout, table(["layer", *(f"rank {rank}" for rank in ranks)], rows)))
    return side_by_side(charts) + note(
        f"Selections of window {shown.newest_name}, relative to the mean rank of the layer: blue below, red above."
    )


def rank_load(made: Plan, window: RoutingStatistics) -> Numbers | None:
    """[L, ranks] selections; None where it takes tokens to know them, and none were kept."""
    if known_from_loads(made):
        return expected_rank_load(window.load, made)
    if window.sample is None or not (window.sample >= 0).any():
        return None
    sources = np.arange(window.sample.shape[1]) % made.topology.num_ranks
    routed = (route(rows, sources, made, layer) for layer, rows in enumerate(window.sample))
    return np.stack([count_slots(slots, sources, made.topology)[0] for slots in routed])


def relative(load: Numbers) -> Numbers:
    """[L, ranks] relative to the layer's mean; 1 everywhere in a layer without load."""
    mean = load.mean(axis=1, keepdims=True)
    return np.where(mean > 0.0, load / np.where(mean > 0.0, mean, 1.0), 1.0)
