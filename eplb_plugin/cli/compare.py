"""`eplb-plugin compare A B …`: serving benchmarks of several arms, ranked only where their spread allows it.

Or one file of paired rounds, which has all arms in it: see `compared_rounds`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import mismatch
from . import compared_rounds
from .options import Json

if TYPE_CHECKING:
    from ..observe.bench_results import Run
    from ..observe.comparison import Cell, Comparison

HEADINGS = {"ttft_p50_ms": "P50 TTFT ms", "tpot_p90_ms": "P90 TPOT ms", "itl_p95_ms": "P95 ITL ms", "qps": "QPS"}
Arms = Annotated[
    list[str],
    typer.Argument(
        help="Folder or file of results per arm, or NAME=PATH; >= 3 runs each. The first is the reference. Or one "
        "results.json of scripts/serve_bench."
    ),
]
Level = Annotated[float, typer.Option(help="Chance of any false verdict in the table, where arms do not differ.")]


def compare(arms: Arms, level: Level = 0.05, as_json: Json = False) -> None:
    """Compare results of `vllm bench serve` or `sglang.bench_serving`: medians, spread, and what may be ranked.

    Settings must be equal. An arm is better or worse than the first if an exact rank-sum test over the runs says so,
    corrected for all comparisons of the table (Holm); else the two are not told apart. Arms that scripts/serve_bench
    has measured in paired rounds are compared round by round instead.
    """
    from ..observe.comparison import compare as compare_arms
    from ..observe.paired_file import is_paired

    if len(arms) == 1 and is_paired(arms[0]):
        compared_rounds.show(arms[0], level, as_json)
        return
    made = compare_arms(read_arms(arms), level)
    if as_json:
        typer.echo(json.dumps(asdict(made), indent=2))
    else:
        show(made)


def read_arms(words: list[str]) -> dict[str, list[Run]]:
    """NAME=PATH or PATH -> the runs of every arm, in order; the name is the path's last part where none is given."""
    from ..observe.bench_results import read_runs

    arms: dict[str, list[Run]] = {}
    for word in words:
        name, path = word.split("=", 1) if "=" in word and not Path(word).exists() else ("", word)
        name = name or Path(path).stem or path
        if name in arms:
            raise mismatch("compare", found=f"two arms named {name}", expected="one", fix="name them: NAME=PATH")
        arms[name] = read_runs(path)
    return arms


def show(made: Comparison, column: tuple[str, Mapping[str, str]] | None = None) -> None:
    """Print the table and what may be read from it. column: one more, a heading and what stands there for each arm."""
    by_row: dict[tuple[int | None, str], dict[str, Cell]] = {}
    for cell in made.cells:
        by_row.setdefault((cell.concurrency, cell.arm), {})[cell.figure] = cell
    title = "median (least – most) and change against the first arm"
    heading, texts = column or ("", {})
    more = [heading] if column else []
    table = Table("limit", "arm", "runs", *HEADINGS.values(), *more, title=title, show_lines=True)
    for (concurrency, arm), row in by_row.items():
        label = "none" if concurrency is None else str(concurrency)
        runs = next(iter(row.values())).runs
        added = [texts.get(arm, "–")] if column else []
        table.add_row(label, arm, str(runs), *(_cell_text(row[figure]) for figure in HEADINGS), *added)
    Console().print(table)
    told = sum(cell.verdict in ("better", "worse") for cell in made.cells)
    typer.echo(
        f"{told} of {made.comparisons} comparisons decided. Rule: exact two-sided rank-sum test over runs, Holm's "
        f"correction for all of them, level {made.level:g}."
    )
    fewest = min(cell.runs for cell in made.cells)
    if fewest < made.runs_needed:
        typer.echo(
            f"{fewest} runs per arm can hardly decide {made.comparisons} comparisons at this level: "
            f"{made.runs_needed} runs could, where all of one arm are better than all of the other."
        )
    if made.unknown:
        typer.echo(f"not every file says: {', '.join(made.unknown)}. Nothing shows that all arms had the same.")
    if any(cell.verdict == "not reported" for cell in made.cells):
        typer.echo("–: not in every result; vllm bench serve needs --metric-percentiles 50,90,95,99")


def _cell_text(cell: Cell) -> str:
    if not cell.change:
        return cell.spread
    colour = {"better": "green", "worse": "red"}.get(cell.verdict, "dim")
    return f"{cell.spread}\n[{colour}]{cell.change}[/]"
