"""Moves from placement to placement: how many, and which way the weights travel between nodes."""

from __future__ import annotations

from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...migration.schedule import schedule
from ...plan_types import Plan
from ...planning.score import moved_slots
from .charts import chart, side_by_side
from .given import Placed
from .markup import note, table

INSIDE, ACROSS = "rgba(110,140,170,0.35)", "rgba(212,87,10,0.6)"


def of_moves(shown: Placed) -> str:
    """Empty without a placement beside the engine's start."""
    if len(shown.plans) < 2:
        return ""
    rows, charts = [], []
    for (before, old), (after, new) in pairwise(shown.plans.items()):
        moved = moved_slots(new.placement, old.placement, new.topology)
        total = int(moved.sum())
        flow = schedule(old.placement.phy2log, new.placement.phy2log, new.topology).node_traffic(1)
        across = int(flow.sum() - np.trace(flow))
        rows.append([
            f"{escape(before)} → {escape(after)}", str(total), f"{total / new.placement.phy2log.size:.1%}", str(across),
            str(int(moved.max())), str(int((moved > 0).sum())),
        ])  # fmt: skip
        if flow.any():
            charts.append(
                _flow(f"{before} → {after}: {across} of {int(flow.sum())} rows of weights cross nodes", flow, new)
            )
    heads = ["from → to", "slots moved", "of all", "rows that cross nodes", "most in a layer", "layers touched"]
    return (
        side_by_side(charts)
        + table(heads, rows)
        + note(
            "A row is one expert's weights in one layer. It crosses to a node once, which passes it on inside; a rank "
            "copies what it has. The engine's start has experts in the order of their ids: the first plan moves most."
        )
    )


def _flow(caption: str, flow: NDArray[np.int64], made: Plan) -> str:
    nodes = made.topology.num_nodes
    names = [f"{way} node {node}" for way in ("from", "to") for node in range(nodes)]
    links = [(source, target) for source in range(nodes) for target in range(nodes) if flow[source, target]]
    trace = {
        "type": "sankey", "arrangement": "fixed" if nodes > 8 else "snap",
        "node": {"label": names, "pad": 14, "thickness": 14, "color": "#6e7f91",
                 "hovertemplate": "%{label}: %{value} rows<extra></extra>"},
        "link": {
            "source": [source for source, _ in links], "target": [nodes + target for _, target in links],
            "value": [int(flow[link]) for link in links],
            "color": [INSIDE if source == target else ACROSS for source, target in links],
            "hovertemplate": "%{source.label} %{target.label}: %{value} rows<extra></extra>",
        },
    }  # fmt: skip
    rows = [[f"node {node}", *map(str, row)] for node, row in enumerate(flow.tolist())]
    values = table(["rows from", *(f"to node {node}" for node in range(nodes))], rows)
    return chart(caption, [trace], {"height": min(180 + 46 * nodes, 620)}, values)
