"""docs/idea.svg: experts that are used together, on two nodes, before and after planning, and what two tokens need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import Plan, RoutingStatistics, Topology, plan
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.score import judge

from .svg import page, text

TARGET = Path(__file__).resolve().parents[3] / "docs" / "idea.svg"
TOPOLOGY = Topology(num_nodes=2, ranks_per_node=2, slots_per_rank=4)  # one slot for each of 16 experts
EXPERTS, TOP_K, TOKENS, LOYAL = 16, 4, 4096, 0.9  # LOYAL: share of a token's choices that are of its own group
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1")  # of groups of experts that are used together
GROUPS = np.random.default_rng(3).permutation(EXPERTS) % len(COLOURS)
STAYS, CROSSES = "#999", "#d62728"
CELL, RANK_GAP, NODE_GAP, PANEL_GAP, TOP, BELOW = 34, 14, 44, 60, 74, 96
PER_RANK, PER_NODE = TOPOLOGY.slots_per_rank, TOPOLOGY.slots_per_rank * TOPOLOGY.ranks_per_node
NODE = PER_NODE * CELL + RANK_GAP
PANEL = 2 * NODE + NODE_GAP


def main() -> None:
    statistics = RoutingStatistics.from_topk(window(1)[None], EXPERTS)
    after = plan(statistics, TOPOLOGY, policy="affinity", dispatch="hash")
    start = linear_placement(1, EXPERTS, TOPOLOGY.num_slots)
    before = Plan(start, TOPOLOGY, "hash", np.ones(start.phy2log.shape), seconds=0.0)
    shown = [int(GROUPS[after.placement.phy2log[0, node * PER_NODE]]) for node in (0, 1)]
    body = panel(0, "experts in order of ids", before, shown)
    body += panel(PANEL + PANEL_GAP, "after planning: those used together share a node", after, shown)
    note = "Colours: experts that the same tokens use. A token is sent once to each other node that holds one of its "
    note += "experts. Counted on later tokens."
    body += text(0, TOP + CELL + BELOW + 44, note, "#555", size=14)
    TARGET.write_text(page(2 * PANEL + PANEL_GAP + 40, TOP + CELL + BELOW + 64, body, left=-20))
    print(f"wrote {TARGET}")


def window(seed: int) -> NDArray[np.int16]:
    """[TOKENS, TOP_K]: a token's experts are its group's, but for a few drawn from all."""
    random = np.random.default_rng(seed)
    taste = random.random((TOKENS, EXPERTS))
    own = GROUPS[None] == random.integers(len(COLOURS), size=TOKENS)[:, None]
    taste += own * (random.random((TOKENS, EXPERTS)) < LOYAL)
    return np.argsort(-taste, axis=1)[:, :TOP_K].astype(np.int16)


def panel(left: int, title: str, made: Plan, shown: list[int]) -> str:
    """shown: the group of a token that lies on each node."""
    slots = made.placement.phy2log[0]
    copies = judge(window(2)[None], np.arange(TOKENS) % TOPOLOGY.num_ranks, made).cross_node_copies
    words = text(left, 24, title, "black", size=18)
    words += text(left, 46, f"{copies:.2f} copies to other nodes per token", size=15)
    boxes = "".join(node_box(left, node) for node in (0, 1))
    tokens = "".join(token(left, node, group, slots) for node, group in enumerate(shown))
    return words + boxes + tokens + "".join(cell(left, slot, int(expert)) for slot, expert in enumerate(slots))


def token(left: int, home: int, group: int, slots: NDArray[np.int32]) -> str:
    x, y = left + home * (NODE + NODE_GAP) + NODE / 2, TOP + CELL + BELOW
    drawn = ""
    for slot in np.flatnonzero(GROUPS[slots] == group):
        colour = STAYS if slot // PER_NODE == home else CROSSES
        line = f"M{x:.0f} {y} L{centre(left, int(slot)):.0f} {TOP + CELL}"
        drawn += f'<path d="{line}" stroke="{colour}" stroke-width="2"/>'
    drawn += f'<circle cx="{x:.0f}" cy="{y}" r="12" fill="{COLOURS[group]}"/>'
    return drawn + text(x + 18, y + 5, f"a token on node {home}", "#555", size=14)


def centre(left: int, slot: int) -> float:
    node, rank = slot // PER_NODE, slot % PER_NODE // PER_RANK
    return left + node * (NODE + NODE_GAP) + rank * RANK_GAP + slot % PER_NODE * CELL + CELL / 2


def node_box(left: int, node: int) -> str:
    x, size = left + node * (NODE + NODE_GAP) - 8, f'width="{NODE + 16}" height="{CELL + 26}"'
    frame = f'<rect x="{x}" y="{TOP - 18}" {size} rx="6" fill="#f4f4f4" stroke="#bbb"/>'
    return frame + text(x + 8, TOP - 5, f"node {node}: two GPUs", "#777")


def cell(left: int, slot: int, expert: int) -> str:
    x, size = centre(left, slot), f'width="{CELL - 4}" height="{CELL - 4}"'
    box = f'<rect x="{x - CELL / 2 + 2:.0f}" y="{TOP + 2}" {size} rx="3" fill="{COLOURS[GROUPS[expert]]}"/>'
    return box + text(x - (4 if expert < 10 else 8), TOP + CELL / 2 + 5, str(expert), "white", size=14)


if __name__ == "__main__":
    main()
