"""The table of `eplb-plugin compare` and `eplb-plugin bench`: arms by limit, and what may be read from it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from .bench_results import HEADINGS
from .comparison import Cell, Comparison


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
    print(
        f"{told} of {made.comparisons} comparisons decided. Rule: exact two-sided rank-sum test over runs, Holm's "
        f"correction for all of them, level {made.level:g}."
    )
    fewest = min(cell.runs for cell in made.cells)
    if fewest < made.runs_needed:
        print(
            f"{fewest} runs per arm can hardly decide {made.comparisons} comparisons at this level: "
            f"{made.runs_needed} runs could, where all of one arm are better than all of the other."
        )
    if made.unknown:
        print(f"not every file says: {', '.join(made.unknown)}. Nothing shows that all arms had the same.")
    if any(cell.verdict == "not reported" for cell in made.cells):
        print("–: not in every result; vllm bench serve needs --metric-percentiles 50,90,95,99")


def _cell_text(cell: Cell) -> str:
    if not cell.change:
        return cell.spread
    colour = {"better": "green", "worse": "red"}.get(cell.verdict, "dim")
    return f"{cell.spread}\n[{colour}]{cell.change}[/]"
