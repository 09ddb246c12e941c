"""`eplb-plugin replay TRACE`: how well a placement, or a plan, serves recorded tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PluginError, mismatch
from ..topology import Topology
from . import judged
from .models import model_of
from .options import Dispatch, Draws, Json, Nodes, NumGroups, RanksPerNode, Seed, SlotsPerRank, Trace
from .placements import read_placement
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of
from .tables import show, slim

PlacementFile = Annotated[Path | None, typer.Option("--placement", help="Placement file to judge on all tokens.")]
PolicyOrNone = Annotated[
    str | None, typer.Option("--policy", help="Plan on one half, judge on the other: affinity, balanced or deepseek.")
]
StepTokens = Annotated[
    int | None, typer.Option("--step-tokens", min=1, help="Tokens of a step, of all ranks: its own balance too.")
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Beside tables: ranks evened out by every step's own counts."),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Every layer's figures too.")]


def replay(
    trace: Trace,
    nodes: Nodes,
    ranks_per_node: RanksPerNode,
    slots_per_rank: SlotsPerRank,
    placement: PlacementFile = None,
    policy: PolicyOrNone = None,
    dispatch: Dispatch = "weighted",
    num_groups: NumGroups = 1,
    num_experts: NumExperts = None,
    layout: Layout = None,
    model_config: ModelConfig = None,
    draws: Draws = 3,
    seed: Seed = 0,
    step_tokens: StepTokens = None,
    exact: Exact = False,
    per_layer: PerLayer = False,
    as_json: Json = False,
) -> None:
    """Judge a placement file, or plans made from one half of TRACE on its other half, under one dispatch."""
    from ..observe.judging import average
    from .judging import Judging, summary

    if exact and step_tokens is None:
        raise mismatch("--exact", found="no --step-tokens", expected="the tokens of a step", fix="pass --step-tokens")
    if placement is not None and policy is not None:
        raise PluginError("replay: found both --placement and --policy, expected one of them; fix: leave one out")
    topology = Topology(nodes, ranks_per_node, slots_per_rank)
    existing = None if placement is None else read_placement(placement, topology)
    readings = read_traces([trace], shape_of(num_experts, layout, model_config, existing))
    window = readings[0].window
    ways = [False, True] if exact else [False]  # by tables, and by quotas
    judging = Judging(trace, window, topology, dispatch, step_tokens, draws, seed)
    if placement is not None and existing is not None:
        model_of([trace, placement])
        placed = existing.for_layers_of(window)
        what = f"file {placement}"
        runs = [judging.of_file(placed, one) for one in ways]
    else:
        policy = policy or "affinity"
        what = f"policy {policy}"
        runs = [judging.of_halves(policy, num_groups, one) for one in ways]
    answer: dict[str, Any] = {
        "trace": str(trace), "judged": what, "dispatch": dispatch, "held_out": placement is None, "draws": draws,
        "topology": {"nodes": nodes, "ranks_per_node": ranks_per_node, "slots_per_rank": slots_per_rank},
        **summary(runs[0]),
    }  # fmt: skip
    if step_tokens is not None:
        answer["step_tokens"] = step_tokens
    if exact:
        answer["exact"] = summary(runs[1])
    if per_layer:
        answer["layers"] = judged.layer_figures(average([run.scores for run in runs[0]]), window.layer_ids)
    say_understood(readings, as_json, existing)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(answer)


def _print(answer: dict[str, Any]) -> None:
    title = f"{answer['judged']} under {answer['dispatch']}, mean of {answer['draws']} source draws"
    headings = judged.headings(answer["runs"])
    if "step_tokens" in answer:
        title += f", steps of {answer['step_tokens']} tokens"
    table = slim("", *headings.values())
    for name, summary in (("mean", answer), ("mean, exact", answer.get("exact"))):
        for row in summary["runs"] if summary else []:
            table.add_row(row["run"], *judged.cells(row, headings))
        if summary and len(summary["runs"]) > 1:
            table.add_row(name, *judged.cells(summary["mean"], headings), style="bold")
    show(title, table, judged.notes(headings))
    if "layers" in answer:
        table = slim("layer", *judged.HEADINGS.values())
        for row in answer["layers"]:
            table.add_row(str(row["layer"]), *judged.cells(row))
        show("", table)
