"""docs/placement.svg: which experts are used together, ordered by the node they lie on, before and after planning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.score import judge
from eplb_plugin.workloads.routing import ClusteredRouter

from .svg import page, text

TARGET = Path(__file__).resolve().parents[3] / "docs" / "placement.svg"
TOPOLOGY = Topology(num_nodes=4, ranks_per_node=2, slots_per_rank=4)  # as many slots as experts: one row per expert
ROUTER = ClusteredRouter(
    num_layers=1, num_experts=32, top_k=4, num_topics=12, strength=6.0, purity=0.9, skew=0.2, mix_seed=1
)
TOKENS = 8192
CELL, GAP, TOP = 13, 50, 70
SIDE = CELL * ROUTER.num_experts


def main() -> None:
    statistics = RoutingStatistics.from_topk(ROUTER.window(TOKENS, seed=1), ROUTER.num_experts)
    held_out = ROUTER.window(TOKENS, seed=2)
    after = plan(statistics, TOPOLOGY, policy="affinity", dispatch="hash")
    start = linear_placement(1, ROUTER.num_experts, TOPOLOGY.num_slots)
    before = Plan(start, TOPOLOGY, "hash", np.ones(start.phy2log.shape), seconds=0.0)
    panels = [
        panel(0, "the engine's start: in order of ids", before, statistics, held_out),
        panel(SIDE + GAP, "after planning: policy affinity", after, statistics, held_out),
    ]
    width, height = 2 * SIDE + GAP + 40, SIDE + TOP + 46
    note = "A cell: tokens that selected both experts, in the planning window. Squares: nodes. Judged on a later one."
    below = text(0, TOP + SIDE + 28, note, "#555", size=13)
    TARGET.write_text(page(width, height, "".join(panels) + below, left=-20))
    print(f"wrote {TARGET}")


def panel(left: int, title: str, made: Plan, statistics: RoutingStatistics, held_out: NDArray[np.int16]) -> str:
    score = judge(held_out, np.arange(TOKENS) % TOPOLOGY.num_ranks, made)
    figures = f"{score.cross_node_copies:.2f} cross-node copies per token, balancedness {score.balancedness:.2f}"
    heading = text(left, 28, title, "black", size=18) + text(left, 52, figures, size=15)
    return heading + cells(left, made.placement, statistics) + nodes(left)


def cells(left: int, placement: Placement, statistics: RoutingStatistics) -> str:
    order = placement.phy2log[0]
    assert statistics.coactivation is not None
    pairs = statistics.coactivation[0][np.ix_(order, order)].astype(float)
    np.fill_diagonal(pairs, 0.0)
    shades = np.sqrt(pairs / pairs.max())  # the root shows weak pairs too
    return "".join(
        f'<rect x="{left + CELL * column}" y="{TOP + CELL * row}" width="{CELL}" height="{CELL}" '
        f'fill="rgb({255 - 215 * shade:.0f},{255 - 145 * shade:.0f},{255 - 75 * shade:.0f})"/>'
        for (row, column), shade in np.ndenumerate(shades)
        if shade > 0.15
    )


def nodes(left: int) -> str:
    size = SIDE // TOPOLOGY.num_nodes
    return "".join(
        f'<rect x="{left + node * size}" y="{TOP + node * size}" width="{size}" height="{size}" fill="none" '
        f'stroke="#d9480f" stroke-width="2"/>'
        for node in range(TOPOLOGY.num_nodes)
    ) + (f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>')


if __name__ == "__main__":
    main()
