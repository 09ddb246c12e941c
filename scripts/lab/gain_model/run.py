"""`scripts/model_gain`: the tables."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from bench.output import output_parser, put_out
from eplb_plugin.errors import PluginError, mismatch
from eplb_plugin.workloads.routing import ClusteredRouter
from eplb_plugin.workloads.trace import read_window

from .cases import Inputs, Row, of_figures, of_traffic
from .clusters import CLUSTERS, SHAPES, Shape
from .step import LayerTime

RANKS = (32, 64, 144, 320)
TOKENS = 65_536  # of either window
WORTH = 0.02  # least share of the layers' time that must go; below, it is not worth turning on


def main() -> int:
    parser = output_parser("model_gain")
    parser.add_argument("--model", default="deepseek-v3", choices=SHAPES)
    parser.add_argument("--gpu", default="H800", choices=CLUSTERS)
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)), help="EP sizes (default: %(default)s)")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="GPUs that NVLink joins")
    parser.add_argument(
        "--trace", type=Path, help="recorded tokens instead of made-up ones: half to plan, half to judge"
    )
    parser.add_argument("--strength", type=float, default=2.0, help="of topics in made-up tokens; 0: none")
    parser.add_argument("--layers", type=int, default=2, help="of made-up tokens")
    parser.add_argument(
        "--step-tokens", type=int, help="tokens of a step of all ranks: each is timed, and exact is an arm"
    )
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=COPIES:BALANCEDNESS[:INGRESS]",
                        help="instead of tokens: an arm's measured figures, the first is the reference")  # fmt: skip
    options = parser.parse_args()
    try:
        rows = _rows(options)
    except PluginError as error:
        print(f"scripts/model_gain: {error}", file=sys.stderr)
        return 2
    shape = SHAPES[options.model]
    results = {
        "what": "a model, not a measurement", "model": options.model, "gpu": options.gpu,
        "ranks_per_node": options.ranks_per_node, "layers": shape.layers,
        "rows": [{**asdict(row), "worth_it": worth_it(row)} for row in rows],
    }  # fmt: skip
    return put_out(results, options, lambda: show(rows, shape, options))


def _rows(options: argparse.Namespace) -> list[Row]:
    shape, cluster = SHAPES[options.model], CLUSTERS[options.gpu]
    try:
        sizes = [int(word) for word in options.ranks.split(",")]
    except ValueError:
        raise mismatch("--ranks", found=options.ranks, expected="counts, comma between", fix="32,64") from None
    if options.arm:
        arms = dict(_figures(word) for word in options.arm)
        return [row for ranks in sizes for row in of_figures(arms, shape, cluster, ranks, options.ranks_per_node)]
    ids, steps = _tokens(options, shape), options.step_tokens
    if steps is not None and not 1 <= steps <= ids.shape[1] // 2:
        expected = f"1 to {ids.shape[1] // 2}, half of the tokens"
        raise mismatch("--step-tokens", found=steps, expected=expected, fix="one step at the least is judged")
    return [row for ranks in sizes for row in of_traffic(ids, shape, cluster, ranks, options.ranks_per_node, steps)]


def _tokens(options: argparse.Namespace, shape: Shape) -> NDArray[Any]:
    model = shape.model
    if options.trace is None:
        router = ClusteredRouter(
            options.layers, model.num_experts, model.top_k, num_topics=48, strength=options.strength, skew=0.5,
            num_groups=shape.groups, top_groups=shape.top_groups,
        )  # fmt: skip
        return router.window(2 * TOKENS)
    window = read_window(options.trace)
    if window.sample is None or window.num_experts != model.num_experts or window.sample.shape[2] != model.top_k:
        expected = f"whole rows of {model.num_experts} experts, top-{model.top_k}"
        raise mismatch(str(options.trace), found="other ones", expected=expected, fix="name its --model")
    return window.sample


def _figures(word: str) -> tuple[str, Inputs]:
    name, _, text = word.partition("=")
    try:
        copies, balancedness, *ingress = (float(part) for part in text.split(":"))
        inputs = Inputs(copies, balancedness, *(ingress or [1.0]))
    except (ValueError, TypeError):
        expected = "NAME=COPIES:BALANCEDNESS[:INGRESS]"
        raise mismatch("--arm", found=word, expected=expected, fix="vanilla=2.73:0.95:1.02, for example") from None
    if not (name and inputs.copies >= 0.0 and 0.0 < inputs.balancedness <= 1.0 <= inputs.ingress < np.inf):
        expected = "copies >= 0, balancedness above 0 and at most 1, ingress >= 1"
        raise mismatch("--arm", found=word, expected=expected, fix="take them from `eplb-plugin replay`")
    return name, inputs


def saved(before: LayerTime, after: LayerTime) -> tuple[float, float]:
    """Shares of the layers' time: parts in turn, and overlapped."""
    return 1.0 - after.in_turn / before.in_turn, 1.0 - after.overlapped / before.overlapped


def worth_it(row: Row) -> str:
    """The arm that saves most if it is worth it with the parts in turn, and whether it still is where they overlap."""
    first, *others = row.times
    gains = {name: saved(row.times[first], row.times[name]) for name in others}
    best = max(gains, key=lambda name: gains[name][0], default=None)
    if best is None or gains[best][0] < WORTH:
        return "no"
    return best if max(gain[1] for gain in gains.values()) >= WORTH else f"{best}; not if overlapped"


def show(rows: list[Row], shape: Shape, options: argparse.Namespace) -> None:
    """Both tables in Markdown."""
    console = Console(width=200)
    names = list(rows[0].times)
    print(
        f"A model, not a measurement: {options.model}, {options.gpu}, {options.ranks_per_node} GPUs to a node, "
        f"{shape.layers} layers with experts.\n"
    )
    inputs = Table("ranks", *names, box=box.MARKDOWN)
    for ranks in dict.fromkeys(row.ranks for row in rows):
        given = next(row.inputs for row in rows if row.ranks == ranks)
        inputs.add_row(str(ranks), *(f"{one.copies:.2f}, {one.balancedness:.3f}" for one in given.values()))
    print("Given to it: cross-node copies per token, balancedness.")
    console.print(inputs)
    table = Table("ranks", "batch", f"{names[0]}: ms", "of it exchange", *names[1:], "worth it?", box=box.MARKDOWN)
    for row in rows:
        first = row.times[names[0]]
        exchange = f"{1.0 - first.gemm / first.in_turn:.0%} ({first.bound})"
        cells = [_change(first, row.times[name]) for name in names[1:]]
        step = f"{first.in_turn * shape.layers / 1e3:.1f} / {first.overlapped * shape.layers / 1e3:.1f}"
        table.add_row(str(row.ranks), f"{row.batch.name}, {row.batch.tokens}", step, exchange, *cells, worth_it(row))
    print("Time of all layers with experts, parts in turn / overlapped, and its change.")
    console.print(table)


def _change(before: LayerTime, after: LayerTime) -> str:
    in_turn, overlapped = saved(before, after)
    return f"{-in_turn:+.1%} / {-overlapped:+.1%}"


if __name__ == "__main__":
    sys.exit(main())
