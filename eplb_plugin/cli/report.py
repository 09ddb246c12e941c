"""`eplb-plugin report`: one HTML file of recorded windows, placements and serving benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..errors import mismatch
from ..files import header_of, write_atomic
from ..placement import Placement
from .compare import read_arms
from .models import model_of
from .options import TRACE_HELP, Dispatch, Json
from .placements import Existing
from .reading import Layout, ModelConfig, NumExperts, read_traces, say_understood, shape_of
from .writing import writing

if TYPE_CHECKING:
    from ..observe.bench_results import Run
    from ..observe.demo_results import DemoResults
    from ..observe.paired_file import PairedRounds

Out = Annotated[Path, typer.Option("--out", help="HTML file to write.")]
Traces = Annotated[list[Path] | None, typer.Option("--trace", help=f"{TRACE_HELP}; several: windows, oldest first.")]
Placements = Annotated[list[Path] | None, typer.Option("--placement", help="Placement files, oldest first.")]
Bench = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        help="NAME=PATH of an arm's benchmark results; repeat. Or one results.json of scripts/demo or "
        "scripts/serve_bench, which has all arms.",
    ),
]
Log = Annotated[Path | None, typer.Option("--log", help="A server's log: its rebalances over time.")]
AdviceFile = Annotated[Path | None, typer.Option("--advice", help="What `advise --json` printed: what to do next.")]
Simulated = Annotated[list[Path] | None, typer.Option("--peo", help="What `peo simulate --json` printed; repeat.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Nodes (fast-link domains) of the EP group.")]
RanksPerNode = Annotated[int, typer.Option("--ranks-per-node", min=1, help="Ranks on every node.")]
Layer = Annotated[int | None, typer.Option(help="Layer of the co-activation picture; default: the least balanced.")]
Title = Annotated[str, typer.Option(help="Heading of the page.")]
Value = TypeVar("Value")


def report(
    out: Out,
    traces: Traces = None,
    placements: Placements = None,
    bench: Bench = None,
    log: Log = None,
    advice: AdviceFile = None,
    peo: Simulated = None,
    nodes: Nodes = 1,
    ranks_per_node: RanksPerNode = 1,
    dispatch: Dispatch = "weighted",
    num_experts: NumExperts = None,
    layout: Layout = None,
    model_config: ModelConfig = None,
    layer: Layer = None,
    title: Title = "Expert placement",
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page: the result, what to do next, rebalances over time, load, moves, latencies.

    Every part appears if its input is given; the page names the commands that supply the others.
    """
    from ..dispatch.rules import checked_rule
    from ..observe.advice_file import read_advice
    from ..observe.gantt import read_simulated_layer
    from ..observe.rebalance_log import read_rebalances
    from ..observe.report import Given, View
    from ..observe.report import report as make_report

    model_of([*(traces or []), *(placements or [])])
    group = {"num_nodes": nodes, "num_ranks": nodes * ranks_per_node}
    placed = _named({path: Placement.load(path, group) for path in placements or []})
    first = next(iter(placed.items()), None)
    shape = shape_of(num_experts, layout, model_config, None if first is None else Existing(Path(first[0]), first[1]))
    readings = read_traces(traces or [], shape)
    arms, rounds, demo = _measured(bench or [])
    given = Given(
        _named(dict(zip(traces or [], [reading.window for reading in readings], strict=True))), placed,
        View(nodes, ranks_per_node, checked_rule(dispatch), layer),
        _named({path: header_of(path) for path in traces or []}),
        arms, rounds, demo, {} if log is None else read_rebalances(log),
        None if advice is None else read_advice(advice), [read_simulated_layer(path) for path in peo or []],
    )  # fmt: skip
    html = make_report(title, given).encode(errors="replace")
    with writing(out):
        write_atomic(out, html)
    say_understood(readings, as_json)
    if as_json:
        typer.echo(json.dumps({"report": str(out), "bytes": len(html)}))
    else:
        typer.echo(f"{out}: {len(html) / 1024:.0f} KiB, opens in any browser, loads nothing else")


def _measured(words: list[str]) -> tuple[dict[str, list[Run]], PairedRounds | None, DemoResults | None]:
    """Arms by name, or the one file that has them all."""
    from ..observe.demo_results import is_demo, read_demo
    from ..observe.paired_file import is_paired, read_paired

    arms, rounds, demo = [], [], []
    for word in words:
        if is_paired(word):
            rounds.append(read_paired(word))
        elif is_demo(word):
            demo.append(read_demo(word))
        else:
            arms.append(word)
    if max(len(rounds), len(demo)) > 1:
        found = f"{max(len(rounds), len(demo))} files that each have all arms"
        raise mismatch("--bench", found=found, expected="one", fix="make a report of each")
    return read_arms(arms), next(iter(rounds), None), next(iter(demo), None)


def _named(files: dict[Path, Value]) -> dict[str, Value]:
    """By the file's name without its ending; the whole path where two are called the same."""
    names = [path.stem for path in files]
    if len(set(files)) != len(names):
        raise mismatch("report", found="a file given twice", expected="every file once", fix="name every file once")
    return {path.stem if names.count(path.stem) == 1 else str(path): value for path, value in files.items()}
