"""`eplb-plugin plan TRACE... --out FILE`: make a placement file, and show what it changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from ..placement import Placement, linear_placement
from ..plan_types import Effort, Plan, PlanOptions
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import judged
from .models import model_of
from .options import (
    PRICES,
    Dispatch,
    Draws,
    ExpertBytes,
    Json,
    LinkGbps,
    Nodes,
    Number,
    NumGroups,
    Policy,
    RanksPerNode,
    Seconds,
    Seed,
    SlotsPerRank,
    TokenBytes,
    Traces,
    fingerprint,
)  # fmt: skip
from .placements import read_placement
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of
from .tables import show, slim
from .writing import writing

Out = Annotated[Path, typer.Option("--out", help="Placement file to write.")]
Previous = Annotated[
    Path | None,
    typer.Option("--previous", help="Placement in force: a file of ours, or SGLang's, vllm-ascend's, TensorRT-LLM's."),
]
MaxMovedSlots = Annotated[int | None, typer.Option("--max-moved-slots", help="Bound per layer, with --previous.")]
EffortName = Annotated[str, typer.Option("--effort", help="thorough or fast: how long policy affinity searches.")]
Tolerance = Annotated[float, typer.Option("--balance-tolerance", help="Overload that a plan leaves alone.")]

WindowSteps = Annotated[Number, typer.Option(help="Forward steps that a trace covers.", rich_help_panel=PRICES)]
HorizonSteps = Annotated[Number, typer.Option(help="Forward steps until the next plan.", rich_help_panel=PRICES)]


def plan(
    traces: Traces,
    nodes: Nodes,
    ranks_per_node: RanksPerNode,
    slots_per_rank: SlotsPerRank,
    out: Out,
    previous: Previous = None,
    policy: Policy = "affinity",
    dispatch: Dispatch = "weighted",
    num_groups: NumGroups = 1,
    num_experts: NumExperts = None,
    layout: Layout = None,
    model_config: ModelConfig = None,
    max_moved_slots: MaxMovedSlots = None,
    effort: EffortName = "thorough",
    balance_tolerance: Tolerance = 0.02,
    expert_bytes: ExpertBytes = None,
    link_gbps: LinkGbps = None,
    token_bytes: TokenBytes = None,
    seconds_per_selection: Seconds = None,
    window_steps: WindowSteps = None,
    horizon_steps: HorizonSteps = None,
    draws: Draws = 3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a placement file from TRACES and print the score before (--previous, or the engines' start) and after.

    Several traces, oldest first, are a history, and the plan is made for its forecast. Prices need --previous: without
    one, every move is made.
    """
    from ..dispatch.rules import checked_rule
    from ..planning.checks import checked_policy
    from ..planning.forecast import forecast, forecast_error
    from ..planning.plan import plan as make_plan
    from ..planning.planner import plan_of
    from ..planning.score import moved_slots

    options = PlanOptions(
        effort=cast(Effort, effort), balance_tolerance=balance_tolerance, max_moved_slots=max_moved_slots,
        expert_bytes=expert_bytes, link_gbps=link_gbps, token_bytes=token_bytes,
        seconds_per_selection=seconds_per_selection, window_steps=window_steps, horizon_steps=horizon_steps,
    )  # fmt: skip
    topology = Topology(nodes, ranks_per_node, slots_per_rank)
    model = model_of([*traces, *([] if previous is None else [previous])])
    existing = None if previous is None else read_placement(previous, topology)
    readings = read_traces(traces, shape_of(num_experts, layout, model_config, existing))
    history = [reading.window for reading in readings]
    window, error = forecast(history), forecast_error(history)
    old = None if existing is None else existing.for_layers_of(window)
    if np.isfinite(error).any():
        options = replace(options, load_error=float(np.nanmean(error)))
    made = make_plan(
        window, topology, policy=checked_policy(policy), previous=old, dispatch=checked_rule(dispatch),
        num_groups=num_groups, options=options,
    )  # fmt: skip
    named = {} if model is None else {"model": model}
    _save(made.placement, out, {**fingerprint(topology), **named, "policy": policy, "dispatch": dispatch})
    start = old or linear_placement(window.num_layers, window.num_experts, topology.num_slots, window.layer_ids)
    moved = moved_slots(made.placement, start, topology)
    answer: dict[str, Any] = {
        "placement": str(out), "policy": policy, "dispatch": dispatch, "windows": len(history), "seconds": made.seconds,
        "forecast_error": options.load_error if np.isfinite(error).any() else None,
        "before": _figures(plan_of(start, topology, made.dispatch), window, draws, seed),
        "after": _figures(made, window, draws, seed),
        "moved_slots": int(moved.sum()), "slots": int(start.phy2log.size), "skipped_layers": made.skipped_layers,
        "less_even": list(made.less_even),
    }  # fmt: skip
    say_understood(readings, as_json, existing)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(answer)


def _save(placement: Placement, out: Path, header: dict[str, Any]) -> None:
    with writing(out):
        placement.save(out, header)


def _figures(made: Plan, window: RoutingStatistics, draws: int, seed: int) -> judged.Figures:
    """Of the window planned for; from its load alone if it has no tokens."""
    from ..observe.judging import judge_draws, recorded_steps
    from ..planning.replicas.at_home import known_from_loads
    from ..planning.score import balancedness, expected_rank_load

    per_step = recorded_steps(window, made)
    of_steps = {} if per_step is None else dict.fromkeys(judged.PER_STEP, per_step)
    if window.sample is None or not (window.sample >= 0).any():
        if window.coactivation is None and not known_from_loads(made):
            return {}
        return {"balancedness": balancedness(expected_rank_load(window.load, made)), **of_steps}
    return {**judged.figures(judge_draws(window.sample, made, draws, seed)), **of_steps}


def _print(answer: dict[str, Any]) -> None:
    title = f"policy {answer['policy']} under {answer['dispatch']}, on the tokens it was made of (held out: replay)"
    headings = judged.headings([answer["before"], answer["after"]])
    table = slim("", *headings.values())
    for name in ("before", "after"):
        table.add_row(name, *judged.cells(answer[name], headings))
    show(title, table, judged.notes(headings))
    line = f"{answer['placement']}: {answer['moved_slots']} of {answer['slots']} slots moved"
    if answer["skipped_layers"]:
        line += f", {answer['skipped_layers']} layers kept because their move would not pay"
    if answer["forecast_error"] is not None:
        line += f"; an expert's load is forecast from {answer['windows']} windows to ±{answer['forecast_error']:.0%}"
    typer.echo(f"{line}; planned in {answer['seconds']:.1f} s")
    for line in answer["less_even"]:
        typer.echo(line)
