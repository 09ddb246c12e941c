"""`eplb-plugin advise TRACE`: what EPLB would bring, whether to enable it, and a settings file for it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engines.sglang.support import DISPATCH as SGLANG
from ..engines.vllm.support import DISPATCH as VLLM
from ..errors import PluginError, mismatch
from ..files import write_atomic
from ..limits import MOST_NODES
from ..plan_types import PlanOptions
from .advice_table import show_advice
from .options import (
    PRICES,
    ExpertBytes,
    Json,
    LinkGbps,
    Nodes,
    Number,
    NumGroups,
    RanksPerNode,
    Seconds,
    TokenBytes,
)  # fmt: skip
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of
from .writing import writing

if TYPE_CHECKING:
    from ..observe.advice import Candidate, Cluster
    from ..statistics import RoutingStatistics

ENGINE_DISPATCH = {"vllm": VLLM, "sglang": SGLANG}  # first what `dispatch: auto` takes
BYTES_PER_VALUE = 3.0  # of a token's hidden state to another node and back: FP8 there, BF16 back

Recording = Annotated[Path, typer.Argument(help="Statistics file, .npz of topk_ids, or .json of loads, without EPLB.")]
Redundant = Annotated[list[int] | None, typer.Option(help="Redundant experts per layer; default: least, +1 per rank.")]
Dispatches = Annotated[list[str] | None, typer.Option("--dispatch", help="Dispatch to try; default: all that can be.")]
Policies = Annotated[list[str] | None, typer.Option("--policy", help="Policies to try; default: all that can be.")]
Engine = Annotated[str, typer.Option(help="vllm or sglang: whose kinds of dispatch are recommended.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Settings file to write.")]
Hidden = Annotated[int | None, typer.Option(min=1, help="The model's hidden size.", rich_help_panel=PRICES)]
Intermediate = Annotated[int | None, typer.Option(min=1, help="An expert's intermediate size.", rich_help_panel=PRICES)]
WeightBytes = Annotated[float, typer.Option(help="Bytes of one weight: 2 BF16, 1 FP8.", rich_help_panel=PRICES)]
PerStep = Annotated[
    Number, typer.Option(help="Tokens of one forward step, all ranks together.", rich_help_panel=PRICES)
]


def advise(
    recording: Recording,
    nodes: Nodes,
    ranks_per_node: RanksPerNode,
    redundant: Redundant = None,
    policies: Policies = None,
    dispatches: Dispatches = None,
    engine: Engine = "vllm",
    num_groups: NumGroups = 1,
    num_experts: NumExperts = None,
    layout: Layout = None,
    model_config: ModelConfig = None,
    hidden: Hidden = None,
    intermediate: Intermediate = None,
    weight_bytes: WeightBytes = 2.0,
    expert_bytes: ExpertBytes = None,
    token_bytes: TokenBytes = None,
    link_gbps: LinkGbps = None,
    seconds_per_selection: Seconds = None,
    tokens_per_step: PerStep = None,
    out: OutFile = None,
    as_json: Json = False,
) -> None:
    """Say what every policy and dispatch would bring to the traffic of RECORDING, and whether to enable EPLB.

    Planned on one half of the tokens and judged on the other, both ways. A .json of loads tells nothing of nodes.
    Without --expert-bytes and --token-bytes they follow from the model's sizes: 3 × hidden × intermediate × weight
    bytes, and 3 × hidden.
    """
    from ..observe.advice import Cluster, survey
    from ..observe.halves import whole_steps
    from ..observe.recommendation import recommend, settings_yaml

    if engine not in ENGINE_DISPATCH:
        raise mismatch("--engine", found=engine, expected=" or ".join(ENGINE_DISPATCH), fix="pass one of them")
    if tokens_per_step is not None and not tokens_per_step > 0.0:
        fix = "pass the tokens of one step, or leave it out"
        raise mismatch("--tokens-per-step", found=tokens_per_step, expected="> 0", fix=fix)
    if expert_bytes is None and hidden is not None and intermediate is not None:
        expert_bytes = 3.0 * hidden * intermediate * weight_bytes  # gate, up and down projections
    if token_bytes is None and hidden is not None:
        token_bytes = BYTES_PER_VALUE * hidden
    readings = read_traces([recording], shape_of(num_experts, layout, model_config))
    window = readings[0].window
    prices = _prices(expert_bytes, token_bytes, link_gbps, seconds_per_selection)
    cluster = Cluster(nodes, ranks_per_node, num_groups, whole_steps(window, tokens_per_step))
    try:
        tried = _candidates(window, cluster, policies, dispatches, redundant, ENGINE_DISPATCH[engine])
        made = survey(window, cluster, tried, options=prices, expert_bytes=expert_bytes)
    except PluginError as error:
        raise PluginError(f"{recording}: {error}") from None
    chosen = recommend(made, ENGINE_DISPATCH[engine], prices, tokens_per_step, nodes * ranks_per_node)
    settings = None
    if chosen.best is not None:
        known = prices if link_gbps is not None else None
        settings = settings_yaml(chosen, nodes, ranks_per_node, known, tokens_per_step)
    if out is not None:
        _write(out, settings)
    answer: dict[str, Any] = {
        "recording": str(recording), "nodes": nodes, "ranks_per_node": ranks_per_node, "expert_bytes": expert_bytes,
        **asdict(made), "enable": chosen.enable, "reasons": chosen.reasons,
        "best": None if chosen.best is None else asdict(chosen.best.candidate),
        "settings": settings, "file": None if out is None else str(out),
    }  # fmt: skip
    say_understood(readings, as_json)
    if as_json:
        typer.echo(json.dumps(_finite(answer), indent=2))
    else:
        priced = prices is not None and prices.seconds_per_selection is not None
        show_advice(made, chosen, window.num_layers, priced, tokens_per_step)
        if out is not None:
            typer.echo(f"{out}: settings written")


def _candidates(
    window: RoutingStatistics, cluster: Cluster, policies: list[str] | None, dispatches: list[str] | None,
    redundant: list[int] | None, engine_dispatch: tuple[str, ...],
) -> list[Candidate]:  # fmt: skip
    """By default all that can be; a dispatch that cannot run on so many nodes is refused only if it was named. Where
    steps are known, `exact` too, for the policy and the wishes that suit it best."""
    from ..dispatch.rules import RULES, checked_rule
    from ..observe.advice import Candidate, slots_of
    from ..planning.checks import POLICIES, checked_policy, runs_on
    from ..planning.sample import knows_tokens

    nodes, ranks = cluster.nodes, cluster.nodes * cluster.ranks_per_node
    if ranks < 1:
        fix = "pass --nodes and --ranks-per-node from 1 up"
        raise mismatch("topology", found=f"{ranks} ranks", expected="at least 1", fix=fix)
    if redundant is None:
        least = slots_of(window.num_experts, ranks) * ranks - window.num_experts
        redundant = [least, least + ranks]
    knows = nodes == 1 or knows_tokens(window)
    if policies is None:
        policies = [one for one in POLICIES if knows or one != "affinity"]
    able, of_engine = (
        [one for one in known if runs_on(one, nodes) and (knows or one != "cover")]
        for known in (RULES, engine_dispatch)
    )
    tried = [
        Candidate(checked_policy(policy), checked_rule(dispatch), count)
        for count in redundant for policy in policies
        for dispatch in dispatches or (able if count else of_engine[:1])  # without replicas there is nothing to choose
    ]  # fmt: skip
    if (cluster.step_tokens is None and window.steps is None) or nodes > MOST_NODES:
        return tried
    suiting = [one for one in tried if one.redundant and one.policy != "deepseek"]
    suiting.sort(key=lambda one: (one.policy == "affinity", one.dispatch == "cover"))
    best = {one.redundant: replace(one, exact=True) for one in suiting}  # the last one of each
    return [*tried, *best.values()]


def _prices(
    expert_bytes: Number, token_bytes: Number, link_gbps: Number, seconds_per_selection: Number
) -> PlanOptions | None:
    """None where too little is known. If time is spent on links alone, their speed cancels out of the break-even."""
    if expert_bytes is None or (token_bytes is None and seconds_per_selection is None):
        return None
    if link_gbps is None and seconds_per_selection is None:
        link_gbps = 1.0
    return PlanOptions(
        expert_bytes=expert_bytes, link_gbps=link_gbps, token_bytes=token_bytes,
        seconds_per_selection=seconds_per_selection, load_error=0.0,
    )  # fmt: skip


def _write(out: Path, settings: str | None) -> None:
    if settings is None:
        raise mismatch("--out", found="nothing to write", expected="a dispatch that the engine can do",
                       fix="name one with --dispatch, or leave it out")  # fmt: skip
    with writing(out):
        write_atomic(out, settings.encode())


def _finite(value: Any) -> Any:
    """JSON has no infinity: a break-even that never comes is null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
