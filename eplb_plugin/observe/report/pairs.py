"""Co-activation in one layer, slots ordered by node: a good placement has what is used together inside the squares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ...errors import mismatch
from ...plan_types import Plan
from ...planning.score import expected_rank_load
from ...statistics import RoutingStatistics
from .charts import WEAK_TO_STRONG, axis, chart, rounded, side_by_side
from .given import BEFORE, Placed
from .loads import relative
from .markup import note, table

EDGE = {"color": "#d4570a", "width": 2}


def of_pairs(shown: Placed, layer: int | None) -> str:
    """Empty without co-activation in the newest window."""
    window = shown.newest
    if window.coactivation is None:
        return ""
    row = _layer_row(shown.plans[BEFORE], window, layer)
    found = {label: _ordered(made, window, row) for label, made in shown.ends.items()}
    most = max(float(pairs.max(initial=0.0)) for pairs, _, _ in found.values())
    charts = [_chart(label, shown.plans[label], *one, most) for label, one in found.items()]
    return side_by_side(charts) + note(
        f"Layer {window.layer_ids[row]}: tokens that selected both experts. Slots stand in the order of their nodes; "
        "an orange square is a node, and pairs outside the squares make tokens cross."
    )


def _ordered(made: Plan, window: RoutingStatistics, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[slots, slots] tokens that selected both; experts of these slots; the slots themselves, in order of nodes."""
    assert window.coactivation is not None
    order = np.argsort(made.topology.node_of_slot, kind="stable")
    experts = made.placement.phy2log[row][order]
    share = made.replica_weights[row][order]
    pairs = window.coactivation[row][np.ix_(experts, experts)] * np.outer(share, share)
    pairs[experts[:, None] == experts[None, :]] = 0.0
    return pairs, experts, order


def _chart(label: str, made: Plan, pairs: np.ndarray, experts: np.ndarray, order: np.ndarray, most: float) -> str:
    nodes = made.topology.node_of_slot[order]
    inside = np.array(
        [[float(pairs[np.ix_(nodes == a, nodes == b)].sum()) for b in np.unique(nodes)] for a in np.unique(nodes)]
    )
    share = float(np.trace(inside)) / max(float(inside.sum()), 1e-300)
    edges = np.searchsorted(nodes, np.arange(made.topology.num_nodes + 1)).tolist()
    squares = [
        {"type": "rect", "x0": first - 0.5, "y0": first - 0.5, "x1": last - 0.5, "y1": last - 0.5, "line": EDGE}
        for first, last in pairwise(edges)
    ]
    names = [f"expert {expert} in slot {slot}" for expert, slot in zip(experts, order, strict=True)]
    trace = {
        "type": "heatmap", "x": names, "y": names, "z": rounded(pairs, 3), "colorscale": WEAK_TO_STRONG,
        "zmin": 0, "zmax": most, "hovertemplate": "%{y}<br>%{x}<br>%{z:.3g} tokens<extra></extra>",
        "colorbar": {"title": {"text": "tokens", "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }  # fmt: skip
    middles = [(first + last - 1) // 2 for first, last in pairwise(edges)]
    every = -(-len(middles) // 8)
    ticks = {"tickvals": middles[::every], "ticktext": [str(node) for node in range(0, len(middles), every)]}
    layout = {
        "height": 420, "shapes": squares, "xaxis": axis("node of the slot", type="category", showgrid=False, **ticks),
        "yaxis": axis("node of the slot", type="category", autorange="reversed", showgrid=False, **ticks),
    }  # fmt: skip
    rows = [[f"node {node}", *(f"{one:.0f}" for one in row)] for node, row in enumerate(inside)]
    values = table(["tokens that use both", *(f"node {node}" for node in range(len(inside)))], rows)
    return chart(f"{label}: {share:.1%} of pairs on one node", [trace], layout, values)


def _layer_row(start: Plan, window: RoutingStatistics, layer: int | None) -> int:
    if layer is None:
        return int(relative(expected_rank_load(window.load, start)).max(axis=1).argmax())
    found = np.flatnonzero(window.layer_ids == layer)
    if not len(found):
        fix = "pass one of them, or leave it out"
        raise mismatch("--layer", found=layer, expected=f"one of {window.layer_ids.tolist()}", fix=fix)
    return int(found[0])
