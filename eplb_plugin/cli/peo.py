"""`eplb-plugin peo simulate|plan|check`: time schedules in a model, choose one, prove the one that settings name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import mismatch
from ..peo.ops import Api, Method, Schedule
from ..peo.schedule import default_num_rounds, make_schedule
from ..settings.config import load_config
from ..settings.sections import PeoConfig
from .options import Json

if TYPE_CHECKING:
    from ..peo.cost import Traffic
    from ..peo.presets import Hardware
    from ..peo.ranking import Ranked

app = typer.Typer(help="Per-expert overlap: model, choose and prove schedules.", no_args_is_help=True)

BATCHES = (4, 16, 64, 128)
Device = Annotated[str, typer.Option("--hardware", help="H20, H100, H800 or H200.")]
ModelName = Annotated[str, typer.Option("--model", help="deepseek-v3, kimi-k2, qwen3-coder-480b, qwen3-235b, glm-4.5.")]
Ranks = Annotated[int, typer.Option("--ranks", min=2, help="EP size; must divide the model's experts.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Tokens of every rank in a step.")]
Batches = Annotated[
    list[int] | None,
    typer.Option("--batch", min=1, help="Tokens of every rank in a step; repeat; default 4 16 64 128."),
]
Factor = Annotated[float, typer.Option("--imbalance-factor", help="max / mean selections per rank; 1 = even.")]
FamilyName = Annotated[str, typer.Option("--family", help="lognormal, gamma or powerlaw, for a factor above 1.")]
MethodName = Annotated[str, typer.Option("--method", help=f"{', '.join(get_args(Method))}.")]
Rounds = Annotated[int | None, typer.Option("--num-rounds", min=1, help="Left out: about 4; with plan: all are tried.")]
Share = Annotated[int | None, typer.Option(min=1, help="SMs; left out: as in the settings.")]
Stock = Annotated[bool, typer.Option("--stock-api", help="An unpatched DeepEP.")]
LinkGbs = Annotated[float | None, typer.Option(help="GB/s of a rank's link, each way, instead of the preset's.")]
LinkUs = Annotated[float | None, typer.Option(help="Its latency in µs, instead of the preset's.")]


@app.command()
def simulate(
    ranks: Ranks, batch: Batch, hardware: Device = "H800", model: ModelName = "deepseek-v3",
    method: MethodName = "overlap-1", num_rounds: Rounds = None, deepep_send_num_sms: Share = None,
    deepep_recv_num_sms: Share = None, up_deepgemm_num_sms: Share = None, down_deepgemm_num_sms: Share = None,
    stock_api: Stock = False, imbalance_factor: Factor = 1.0, family: FamilyName = "lognormal",
    link_gbs: LinkGbs = None, link_us: LinkUs = None, as_json: Json = False,
) -> None:  # fmt: skip
    """When each op of one MoE layer begins and ends on its slowest rank, in a model. Nothing is measured."""
    from ..observe.gantt import simulated_layer
    from ..peo.ranking import unsplit_us
    from ..peo.timeline import simulate as run

    device, traffic = _device(hardware, link_gbs, link_us), _traffic(model, ranks, batch, imbalance_factor, family)
    local = traffic.num_local_experts
    schedule = make_schedule(
        method,  # type: ignore[arg-type]  # an unknown one is refused there
        num_rounds=num_rounds or (1 if method == "non-overlap" else default_num_rounds(local)),
        num_local_experts=local, num_device_sms=device.num_sms, deepep_send_num_sms=deepep_send_num_sms,
        deepep_recv_num_sms=deepep_recv_num_sms, up_deepgemm_num_sms=up_deepgemm_num_sms,
        down_deepgemm_num_sms=down_deepgemm_num_sms, api="stock" if stock_api else "patched",
    )  # fmt: skip
    title = f"{method}, {schedule.num_rounds} rounds, {schedule.api} API: {model}, {hardware}, EP{ranks}, batch {batch}"
    base, factor = unsplit_us(device, [traffic])[batch], float(traffic.shares.sum(axis=1).max() * ranks)
    layer = simulated_layer(run(schedule, device, traffic), title, base, factor)
    if as_json:
        typer.echo(layer.model_dump_json(indent=2))
        return
    table = Table("op", "SMs", "from µs", "to µs", title=title, box=box.SIMPLE_HEAD)
    for op, bar in zip(schedule, layer.bars, strict=True):
        table.add_row(str(op), str(op.num_sms), f"{bar.start_us:.1f}", f"{bar.end_us:.1f}")
    Console().print(table)
    typer.echo(f"rank {layer.rank}, the slowest of {ranks}; imbalance factor {factor:.2f}")
    typer.echo(f"{layer.total_us:.0f} µs; without overlap {base:.0f} µs: {layer.gain:+.1%}")
    typer.echo(layer.note)


@app.command()
def plan(
    ranks: Ranks, hardware: Device = "H800", model: ModelName = "deepseek-v3", batch: Batches = None,
    num_rounds: Rounds = None, imbalance_factor: Factor = 1.0, family: FamilyName = "lognormal",
    link_gbs: LinkGbs = None, link_us: LinkUs = None,
    show: Annotated[int, typer.Option(min=1, help="How many of the best to print.")] = 8, as_json: Json = False,
) -> None:  # fmt: skip
    """Rank all methods, rounds and SM shares in a model, and print settings for the best, if any is worth it."""
    from ..peo.ranking import distances, rank_schedules, stock_candidate
    from ..peo.timeline import MODEL_NOT_MEASUREMENT

    device = _device(hardware, link_gbs, link_us)
    traffics = [_traffic(model, ranks, one, imbalance_factor, family) for one in sorted(set(batch or BATCHES))]
    ranked = rank_schedules(device, traffics, num_rounds)
    best = ranked[0]
    stock = stock_candidate(device, traffics, best.schedule.num_rounds)
    far = distances(device, ranks)
    settings = _settings(best) if best.is_worth_it else None
    if as_json:
        answer = {
            "note": MODEL_NOT_MEASUREMENT, "hardware": asdict(device), "model": model, "ranks": ranks,
            "ranked": [_figures(one) for one in ranked[:show]], "stock": _figures(stock),
            "settings": settings, "claims": [asdict(one) for one in far],
        }  # fmt: skip
        typer.echo(json.dumps(answer, indent=2))
        return
    heads = ["method", "rounds", "comm SMs", *(f"bs {one.batch}" for one in traffics), "mean"]
    table = Table(*heads, title=f"{model} on {ranks} {hardware}: gain over no overlap", box=box.SIMPLE_HEAD)
    for one in [*ranked[:show], stock]:
        name = f"{one.schedule.method}{' stock' if one.schedule.api == 'stock' else ''}"
        gains = [f"{gain:+.0%}" for gain in (*one.gain.values(), one.mean_gain)]
        table.add_row(name, str(one.schedule.num_rounds), str(one.comm_sms), *gains)
    Console().print(table)
    for distance in far:
        claim = distance.claim
        words = f"claimed for {claim.family} at batch {claim.batch}: {claim.percent:+.0f} %"
        typer.echo(f"{words}; this model, {distance.model}: {distance.modelled:+.0f} %")
    typer.echo("(claims of DeepEP PR 492, whose GPU, EP size and kind of gain are not known)")
    typer.echo(settings or "advice: leave PEO off; nothing gains 2 % here", nl=settings is None)
    typer.echo(MODEL_NOT_MEASUREMENT)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="YAML settings file with a peo section.")],
    local_experts: Annotated[int, typer.Option(min=1, help="Physical experts of a rank, redundant ones included.")],
    ranks: Ranks,
    num_sms: Annotated[int, typer.Option(min=2, help="SMs of the GPU: H20 78, H100 132.")],
    as_json: Json = False,
) -> None:
    """Prove that the schedule of FILE is legal for DeepEP's double buffer, or name the op that is not (exit code 2)."""
    from ..peo.protocol import check as prove

    peo = load_config(file).peo
    if peo is None:
        raise mismatch(str(file), found="no peo section", expected="one", fix="add peo: {method: overlap-1}")
    apis: list[Api] = ["patched", "stock"] if peo.stock_api else ["patched"]
    proven = []
    for api in apis:
        schedule = _schedule_of(peo, local_experts, num_sms, api)
        prove(schedule, num_ranks=ranks)
        proven.append(schedule)
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "legal": True} for one in proven], indent=2))
        return
    for one in proven:
        table = Table("#", "op", "SMs", "experts", "waits for", "records", box=box.SIMPLE_HEAD)
        for place, op in enumerate(one):
            waits, experts = ", ".join(op.waits) or "–", f"{op.experts[0]}..{op.experts[1] - 1}"
            table.add_row(str(place), str(op), str(op.num_sms), experts, waits, op.records or "–")
        Console().print(table)
        typer.echo(f"legal: {one.method}, {one.num_rounds} rounds, {one.api} API, {one.num_calls} DeepEP calls a layer")


def _schedule_of(peo: PeoConfig, local_experts: int, num_sms: int, api: Api) -> Schedule:
    rounds = peo.num_rounds or default_num_rounds(local_experts)
    if api == "stock":
        return make_schedule(
            "overlap-2", num_rounds=rounds, num_local_experts=local_experts, num_device_sms=num_sms, api=api
        )
    return make_schedule(
        peo.method, num_rounds=rounds, num_local_experts=local_experts, num_device_sms=num_sms,
        deepep_send_num_sms=peo.deepep_send_num_sms, deepep_recv_num_sms=peo.deepep_recv_num_sms,
        up_deepgemm_num_sms=peo.up_deepgemm_num_sms, down_deepgemm_num_sms=peo.down_deepgemm_num_sms,
    )  # fmt: skip


def _device(name: str, link_gbs: float | None, link_us: float | None) -> Hardware:
    from ..peo.presets import HARDWARE

    if name not in HARDWARE:
        raise mismatch("--hardware", found=name, expected=", ".join(HARDWARE), fix="pass one of these names")
    device = HARDWARE[name]
    return replace(device, link_gbs=link_gbs or device.link_gbs, link_us=link_us or device.link_us)


def _traffic(name: str, ranks: int, batch: int, factor: float, family: str) -> Traffic:
    from ..peo.cost import Traffic, even_shares, shares_of
    from ..peo.presets import MODELS
    from ..workloads.families import checked_family
    from ..workloads.imbalance import loads_at

    if name not in MODELS:
        raise mismatch("--model", found=name, expected=", ".join(MODELS), fix="pass one of these names")
    model = MODELS[name]
    if model.num_experts % ranks:
        fix = "pass a number of ranks that divides the experts"
        raise mismatch("--ranks", found=ranks, expected=f"a divisor of {model.num_experts} experts", fix=fix)
    chosen = checked_family(family)
    if factor == 1.0:
        return Traffic(model, even_shares(ranks, model.num_experts // ranks), batch)
    shares = loads_at(factor, chosen, model.num_experts, ranks, model.top_k, layers=1).shares[0]
    return Traffic(model, shares_of(shares, ranks), batch)


def _figures(one: Ranked) -> dict[str, Any]:
    return {
        "method": one.schedule.method, "api": one.schedule.api, "num_rounds": one.schedule.num_rounds,
        "comm_sms": one.comm_sms, "total_us": dict(one.total_us), "gain": dict(one.gain), "mean_gain": one.mean_gain,
    }  # fmt: skip


def _settings(best: Ranked) -> str:
    """The `peo` section that asks for it."""
    section = {
        "method": best.schedule.method, "num_rounds": best.schedule.num_rounds,
        "deepep_send_num_sms": best.comm_sms, "deepep_recv_num_sms": best.comm_sms,
    }  # fmt: skip
    return yaml.safe_dump({"peo": section}, sort_keys=False)
