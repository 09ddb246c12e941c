"""`eplb-plugin workload make|fit`: routing with a chosen imbalance, and the family that recorded loads belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..errors import PluginError, mismatch
from ..files import write_atomic
from .options import Json, NumGroups
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of
from .tables import show, slim
from .writing import writing

if TYPE_CHECKING:
    from ..workloads.imbalance import Target

app = typer.Typer(help="Make routing with a chosen imbalance, or fit a family to loads.", no_args_is_help=True)
FORMATS = (".npz", ".safetensors")

Layers = Annotated[int, typer.Option(min=1, max=1000)]
Experts = Annotated[int, typer.Option(min=1, max=4096)]
TopK = Annotated[int, typer.Option("--top-k", min=1, max=64, help="Experts of a token.")]
Tokens = Annotated[int, typer.Option(min=1, max=1_000_000)]
Ranks = Annotated[int, typer.Option(min=1, help="EP size; must divide the experts.")]
Factors = Annotated[
    list[float], typer.Option("--factor", help="max / mean selections per rank; several: one file each.")
]
FamilyName = Annotated[str, typer.Option("--family", help="lognormal, gamma or powerlaw.")]
Out = Annotated[Path | None, typer.Option(help=".npz (topk_ids) or .safetensors (statistics); none: the table only.")]
Topics = Annotated[int, typer.Option(min=1, help="Topics of tokens, which use experts together.")]
Strength = Annotated[float, typer.Option(min=0.0, max=20.0, help="How much a topic decides; 0 = no co-activation.")]
Purity = Annotated[float, typer.Option(help="0 = tastes of topics overlap, 1 = they do not.")]
TopGroups = Annotated[int, typer.Option(min=1, help="Expert groups that a token may use, of --num-groups.")]
Drift = Annotated[float, typer.Option(help="0 … 1: the topic mixture moves away from the one the loads are set for.")]
ModelSeed = Annotated[int, typer.Option(min=0, help="Of the model: which experts are popular, what topics want.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the window: other tokens of the same model.")]


@app.command()
def make(
    layers: Layers,
    experts: Experts,
    top_k: TopK,
    ranks: Ranks,
    factor: Factors,
    tokens: Tokens = 8192,
    family: FamilyName = "lognormal",
    topics: Topics = 24,
    strength: Strength = 1.5,
    purity: Purity = 0.0,
    num_groups: NumGroups = 1,
    top_groups: TopGroups = 1,
    drift: Drift = 0.0,
    model_seed: ModelSeed = 0,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Route TOKENS so that the busiest rank serves FACTOR times the mean; print what came out, and write it.

    The loads are set on the window with seed 0 and no drift: other seeds are later windows of the same traffic.
    """
    from ..workloads.families import checked_family
    from ..workloads.imbalance import fitted_router, loads_at, reachable_factor
    from ..workloads.routing import ClusteredRouter

    chosen = checked_family(family)
    if out is not None and out.suffix not in FORMATS:
        fix = "end the name in .npz or .safetensors"
        raise mismatch("--out", found=out.name, expected=f"a name in {' or '.join(FORMATS)}", fix=fix)
    router = ClusteredRouter(
        layers, experts, top_k, topics, strength, 0.0, purity, num_groups, top_groups, model_seed
    )  # fmt: skip
    targets = [loads_at(one, chosen, experts, ranks, top_k, layers, model_seed) for one in factor]
    rows = []
    for wanted, target in zip(factor, targets, strict=True):
        window = fitted_router(router, target.shares, tokens).drifted(drift).window(tokens, seed)
        rows.append({"factor": wanted, **_figures(window, target, ranks)})
        if out is not None:
            path = out if len(factor) == 1 else out.with_stem(f"{out.stem}-{wanted:g}")
            _write(path, window, experts, {"workload": f"{family}, factor {wanted:g} on {ranks} ranks"})
            rows[-1]["file"] = str(path)
    answer = {
        "family": family, "parameter": chosen.parameter, "layers": layers, "experts": experts, "top_k": top_k,
        "ranks": ranks, "tokens": tokens, "drift": drift, "model_seed": model_seed, "seed": seed,
        "reachable": [1.0, reachable_factor(chosen, experts, ranks, top_k, layers, model_seed)], "windows": rows,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print_made(answer)


@app.command()
def fit(
    loads: Annotated[Path, typer.Argument(help="Statistics file, .npz with topk_ids, or .json with heat per layer.")],
    ranks: Annotated[int | None, typer.Option(min=1, help="EP size: print the recorded imbalance factor too.")] = None,
    num_experts: NumExperts = None,
    layout: Layout = None,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Fit every family to recorded LOADS, layer by layer, and say which fits best (least SSE)."""
    from ..workloads.families import FAMILIES
    from ..workloads.families import fit as fit_family
    from ..workloads.imbalance import imbalance_factor

    readings = read_traces([loads], shape_of(num_experts, layout, model_config))
    window = readings[0].window
    try:
        fits = {name: fit_family(window.load, family) for name, family in FAMILIES.items()}
    except PluginError as error:
        raise PluginError(f"{loads}: {error}") from None
    best = np.argmin([one.sse for one in fits.values()], axis=0)
    families = [
        {
            "family": name, "parameter": one.family.parameter, "sse": float(one.sse.mean()),
            "sse_min": float(one.sse.min()), "sse_max": float(one.sse.max()),
            "best_in_layers": int((best == position).sum()),
            "spread": float(np.median(one.spread)), "spreads": one.spread.tolist(),
        }
        for position, (name, one) in enumerate(fits.items())
    ]  # fmt: skip
    answer: dict[str, Any] = {
        "loads": str(loads), "layers": window.num_layers, "experts": window.num_experts, "families": families,
        "best": min(families, key=lambda row: row["sse"])["family"],
    }  # fmt: skip
    if ranks is not None:
        answer["ranks"], answer["factor"] = ranks, _spread_of(imbalance_factor(window.load, ranks))
    say_understood(readings, as_json)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print_fits(answer)


def _figures(window: Any, target: Target, ranks: int) -> dict[str, Any]:
    from ..workloads.imbalance import imbalance_factor, load_error, rank_load

    experts = target.shares.shape[1]
    load = np.stack([np.bincount(rows.ravel(), minlength=experts) for rows in window])
    of_rank = rank_load(load, ranks)
    return {
        "actual": _spread_of(imbalance_factor(load, ranks)),
        "spread": float(np.median(target.spread)),
        "load_error": float(load_error(load, target.shares).mean()),
        "selections_per_rank": {
            "max": float(of_rank.max(axis=1).mean()), "min": float(of_rank.min(axis=1).mean()),
            "avg": float(of_rank.mean()), "median": float(np.median(of_rank, axis=1).mean()),
            "std": float(of_rank.std(axis=1).mean()),
        },
    }  # fmt: skip


def _spread_of(factors: Any) -> dict[str, float]:
    return {"mean": float(factors.mean()), "min": float(factors.min()), "max": float(factors.max())}


def _write(path: Path, window: Any, experts: int, header: dict[str, Any]) -> None:
    import io

    from ..statistics import RoutingStatistics

    with writing(path):
        if path.suffix == ".npz":
            data = io.BytesIO()
            np.savez_compressed(data, topk_ids=window, num_experts=experts)
            write_atomic(path, data.getvalue())
        else:
            RoutingStatistics.from_topk(window, experts).save(path, header)


def _print_made(answer: dict[str, Any]) -> None:
    reachable = f"factors that every layer reaches: 1.00 to {answer['reachable'][1]:.2f}"
    typer.echo(
        f"{answer['family']}, {answer['experts']} experts, top-{answer['top_k']}, {answer['ranks']} ranks; {reachable}"
    )
    names = ("max", "min", "avg", "median", "std")
    table = slim("wanted", "actual", "layers", *names, answer["parameter"], "missed")
    for row in answer["windows"]:
        actual, of_rank = row["actual"], row["selections_per_rank"]
        table.add_row(
            f"{row['factor']:.2f}", f"{actual['mean']:.3f}", f"{actual['min']:.2f}–{actual['max']:.2f}",
            *(f"{of_rank[name]:.0f}" for name in names), f"{row['spread']:.2f}", f"{row['load_error']:.2%}",
        )  # fmt: skip
    notes = ["max to std: selections per rank; missed: those that the wanted loads would give to another expert"]
    show("", table, notes)
    for row in answer["windows"]:
        if "file" in row:
            typer.echo(f"{row['file']}: {answer['layers']} layers × {answer['tokens']} tokens")


def _print_fits(answer: dict[str, Any]) -> None:
    title = f"{answer['layers']} layers × {answer['experts']} experts; least error: {answer['best']}"
    table = slim("family", "spread", "median", "SSE", "least", "most", "best in")
    for row in answer["families"]:
        table.add_row(
            row["family"], row["parameter"], f"{row['spread']:.3f}", f"{row['sse']:.3f}", f"{row['sse_min']:.3f}",
            f"{row['sse_max']:.3f}", f"{row['best_in_layers']} layers",
        )  # fmt: skip
    show(title, table, ["SSE: squared differences of load / mean over experts in order of size, mean of layers"])
    if "factor" in answer:
        factor = answer["factor"]
        line = f"mean {factor['mean']:.3f}, layers {factor['min']:.3f} to {factor['max']:.3f}"
        typer.echo(f"recorded imbalance factor on {answer['ranks']} ranks: {line}")
