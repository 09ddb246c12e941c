"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..topology import Topology

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

TRACE_HELP = "Statistics file, .npz with topk_ids (layers × tokens × k), or another kind that docs/tools.md names"
Trace = Annotated[Path, typer.Argument(help=f"{TRACE_HELP}.")]
Traces = Annotated[list[Path], typer.Argument(help=f"{TRACE_HELP}; several, oldest first: plan for their forecast.")]


Nodes = Annotated[int, typer.Option("--nodes", help="Nodes (fast-link domains) of the EP group.")]
RanksPerNode = Annotated[int, typer.Option("--ranks-per-node", help="Ranks on every node.")]
SlotsPerRank = Annotated[int, typer.Option("--slots-per-rank", help="Physical experts per rank and layer.")]
Dispatch = Annotated[str, typer.Option("--dispatch", help="How replicas are chosen: weighted, hash, nearest or cover.")]
Policy = Annotated[str, typer.Option("--policy", help="affinity, balanced or deepseek.")]
NumGroups = Annotated[int, typer.Option("--num-groups", help="The model's expert groups (group-limited routing).")]
Draws = Annotated[int, typer.Option("--draws", min=1, max=1000, help="Random source ranks to average over.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the source ranks.")]

PRICES = "Sizes and prices of moves (docs/planner.md)"
Number = float | None
ExpertBytes = Annotated[Number, typer.Option(help="Weights of one expert in one layer.", rich_help_panel=PRICES)]
TokenBytes = Annotated[Number, typer.Option(help="A token's copy to a node, there and back.", rich_help_panel=PRICES)]
LinkGbps = Annotated[Number, typer.Option(help="Gbit/s of a rank's link to other nodes.", rich_help_panel=PRICES)]
Seconds = Annotated[Number, typer.Option(help="To compute one selection in one layer.", rich_help_panel=PRICES)]


def fingerprint(topology: Topology) -> dict[str, int]:
    """What a placement file says of the EP group that it was made for."""
    return {"num_nodes": topology.num_nodes, "num_ranks": topology.num_ranks}
