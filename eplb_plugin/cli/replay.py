"""`eplb-plugin replay TRACE`: how well a placement, or a plan, serves recorded tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import PluginError, mismatch
from ..placement import Placement
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import judged
from .models import model_of
from .options import Dispatch, Draws, Json, Nodes, NumGroups, RanksPerNode, Seed, SlotsPerRank, Trace
from .placements import read_placement
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of

if TYPE_CHECKING:
    from ..plan_types import Plan
    from ..planning.score import LayerScores

PlacementFile = Annotated[Path | None, typer.Option("--placement", help="Placement file to judge on all tokens.")]
PolicyOrNone = Annotated[
    str | None, typer.Option("--policy", help="Plan on one half, judge on the other: affinity, balanced or deepseek.")
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Every layer's figures too.")]
Run = tuple[str, "LayerScores"]


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
    per_layer: PerLayer = False,
    as_json: Json = False,
) -> None:
    """Judge a placement file, or plans made from one half of TRACE on its other half, under one dispatch."""
    from ..observe.judging import average

    if placement is not None and policy is not None:
        raise PluginError("replay: found both --placement and --policy, expected one of them; fix: leave one out")
    topology = Topology(nodes, ranks_per_node, slots_per_rank)
    existing = None if placement is None else read_placement(placement, topology)
    readings = read_traces([trace], shape_of(num_experts, layout, model_config, existing))
    window = readings[0].window
    if placement is not None and existing is not None:
        model_of([trace, placement])
        placed = existing.for_layers_of(window)
        what = f"file {placement}"
        runs, layer_ids = _judge_file(trace, window, placed, topology, dispatch, draws, seed)
    else:
        policy = policy or "affinity"
        what = f"policy {policy}"
        planned = _planner(policy, topology, dispatch, num_groups)
        runs, layer_ids = _judge_halves(trace, window, planned, draws, seed)
    scores = average([score for _, score in runs])
    answer: dict[str, Any] = {
        "trace": str(trace), "judged": what, "dispatch": dispatch, "held_out": placement is None, "draws": draws,
        "topology": {"nodes": nodes, "ranks_per_node": ranks_per_node, "slots_per_rank": slots_per_rank},
        "runs": [{"run": name, **judged.figures(score)} for name, score in runs],
        "mean": judged.figures(scores),
    }  # fmt: skip
    if per_layer:
        answer["layers"] = judged.layer_figures(scores, layer_ids)
    say_understood(readings, as_json, existing)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(answer)


def _judge_file(
    trace: Path, window: RoutingStatistics, placement: Placement, topology: Topology, dispatch: str,
    draws: int, seed: int,
) -> tuple[list[Run], NDArray[Any]]:  # fmt: skip
    from ..dispatch.rules import checked_rule
    from ..observe.judging import judge_draws
    from ..planning.planner import plan_of

    found = f"layers {window.layer_ids.tolist()} × {window.num_experts} experts"
    expected = f"layers {placement.layer_ids.tolist()} × {placement.num_experts} experts"
    if found != expected:
        raise mismatch(str(trace), found=found, expected=expected, fix="pass trace and placement of one model")
    made = plan_of(placement, topology, checked_rule(dispatch))
    return [("all tokens", judge_draws(_sample(trace, window, 1), made, draws, seed))], window.layer_ids


def _planner(policy: str, topology: Topology, dispatch: str, num_groups: int) -> Callable[[RoutingStatistics], Plan]:
    from ..dispatch.rules import checked_rule
    from ..planning.checks import checked_policy
    from ..planning.plan import plan

    return partial(
        plan, topology=topology, policy=checked_policy(policy), dispatch=checked_rule(dispatch), num_groups=num_groups
    )


def _judge_halves(
    trace: Path, window: RoutingStatistics, planned: Callable[[RoutingStatistics], Plan], draws: int, seed: int
) -> tuple[list[Run], NDArray[Any]]:
    """Each half judged under the plan made from the other."""
    from ..observe.judging import judge_draws

    rows = _sample(trace, window, 2)
    middle = rows.shape[1] // 2
    halves, runs = {"first": rows[:, :middle], "second": rows[:, middle:]}, []
    for known, unseen in (("first", "second"), ("second", "first")):
        made = planned(RoutingStatistics.from_topk(halves[known], window.num_experts, window.layer_ids))
        runs.append((f"{known} half → {unseen}", judge_draws(halves[unseen], made, draws, seed)))
    return runs, window.layer_ids


def _sample(trace: Path, window: RoutingStatistics, least: int) -> NDArray[np.int16]:
    """[L, T, K] rows that any layer filled, in their order."""
    rows = np.empty((window.num_layers, 0, 1), np.int16) if window.sample is None else window.sample
    rows = rows[:, (rows >= 0).any(axis=(0, 2))]
    if rows.shape[1] < least:
        expected = f"at least {least}"
        raise mismatch(f"{trace}: token rows", found=rows.shape[1], expected=expected, fix="record with a token sample")
    return rows


def _print(answer: dict[str, Any]) -> None:
    title = f"{answer['judged']} under {answer['dispatch']}, mean of {answer['draws']} source draws"
    table = Table("", *judged.HEADINGS.values(), title=escape(title))
    for row in answer["runs"]:
        table.add_row(row["run"], *judged.cells(row))
    if len(answer["runs"]) > 1:
        table.add_row("mean", *judged.cells(answer["mean"]), style="bold")
    console = Console()
    console.print(table)
    if "layers" in answer:
        table = Table("layer", *judged.HEADINGS.values())
        for row in answer["layers"]:
            table.add_row(str(row["layer"]), *judged.cells(row))
        console.print(table)
