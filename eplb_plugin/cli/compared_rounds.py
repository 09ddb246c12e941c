"""What `eplb-plugin compare` prints of a benchmark in paired rounds: changes with their intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..observe.paired import PairedCell, PairedComparison

_COLOURS = {"better": "green", "worse": "red"}


def show(path: str, level: float, as_json: bool) -> None:
    from ..observe.paired_file import read_paired

    made = read_paired(path).compare(level)
    if as_json:
        typer.echo(json.dumps(asdict(made), indent=2))
    else:
        _print(made)


def _print(made: PairedComparison) -> None:
    console = Console()
    for condition in dict.fromkeys(cell.condition for cell in made.cells):
        cells = [cell for cell in made.cells if cell.condition == condition]
        arms = list(dict.fromkeys(cell.arm for cell in cells))
        title = f"{condition}: mean, and paired change against {made.reference} with its {1 - made.level:.0%} interval"
        table = Table("", *arms, title=title, show_lines=True)
        for figure in dict.fromkeys(cell.figure for cell in cells):
            row = {cell.arm: cell for cell in cells if cell.figure == figure}
            table.add_row(figure, *(_text(row[arm]) if arm in row else "–" for arm in arms))
        console.print(table)
    told = sum(cell.verdict in ("better", "worse") for cell in made.cells)
    typer.echo(
        f"{told} of {made.comparisons} comparisons decided. Rule: Student's t over paired log ratios, Holm's "
        f"correction for all of them, level {made.level:g}."
    )
    if any(cell.unit == "start" for cell in made.cells if cell.units):
        typer.echo("Arms on servers of their own are compared start by start (their rounds' means), others by rounds.")
    if any(cell.verdict == "not compared" for cell in made.cells):
        typer.echo("Without an interval: for information alone, or fewer than three pairs, or zeros.")


def _text(cell: PairedCell) -> str:
    if cell.change is None or cell.low is None or cell.high is None:
        return f"{cell.mean:.4g}"
    colour = _COLOURS.get(cell.verdict, "dim")
    interval = f"{cell.change:+.1%} ({cell.low:+.1%} … {cell.high:+.1%}), {cell.units} {cell.unit}s"
    return f"{cell.mean:.4g}\n[{colour}]{interval}\n{cell.verdict}[/]"
