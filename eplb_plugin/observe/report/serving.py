"""What was measured, arm by arm: load generators' runs, paired rounds, and the demo's own table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..bench_results import HEADINGS, Run
from ..comparison import Cell, Comparison, compare
from ..demo_results import DemoResults
from ..paired import PairedCell, PairedComparison
from ..paired_file import PairedRounds
from .charts import Bar, axis, bars, chart, label, side_by_side
from .markup import note, table

UNITS = {
    "ttft_p50_ms": "median time to first token, ms", "tpot_p90_ms": "P90 time per output token, ms",
    "itl_p95_ms": "P95 time between tokens, ms", "qps": "requests per second",
}  # fmt: skip
assert UNITS.keys() == HEADINGS.keys()


def of_runs(arms: Mapping[str, Sequence[Run]]) -> str:
    made = compare(arms, least_runs=1)
    charts = [_of_figure(made, figure) for figure in UNITS]
    return side_by_side([one for one in charts if one]) + _table(made)


def _of_figure(made: Comparison, figure: str) -> str:
    groups: dict[str, list[Bar]] = {}
    for cell in made.cells:
        if cell.figure == figure and cell.median is not None:
            groups.setdefault(_in_flight(cell.concurrency), []).append(
                Bar(cell.arm, cell.median, cell.least, cell.most)
            )
    better = "more is better" if figure == "qps" else "less is better"
    return (
        bars(f"{HEADINGS[figure]}: {better} (line: least to most of the runs)", UNITS[figure], groups) if groups else ""
    )


def _in_flight(concurrency: int | None) -> str:
    return "no limit" if concurrency is None else f"{concurrency} in flight"


def _table(made: Comparison) -> str:
    rows: dict[tuple[int | None, str], list[str]] = {}
    for cell in made.cells:
        limit = "none" if cell.concurrency is None else str(cell.concurrency)
        first = [limit, escape(cell.arm), str(cell.runs)]
        rows.setdefault((cell.concurrency, cell.arm), first).append(_cell(cell))
    told = (
        "Median (least – most) of the runs. An arm is called better or worse than the first one only where an exact "
        f"rank-sum test, corrected for all {made.comparisons} comparisons (Holm), allows it at level {made.level:g}."
    )
    return table(["concurrency", "arm", "runs", *HEADINGS.values()], list(rows.values())) + note(told)


def _cell(cell: Cell) -> str:
    if not cell.change:
        return cell.spread
    return f'{cell.spread}<br><span class="{cell.verdict.split()[0]}">{cell.change}</span>'


def of_rounds(rounds: PairedRounds) -> str:
    made = rounds.compare()
    conditions = list(dict.fromkeys(cell.condition for cell in made.cells))
    charts = "".join(_changes(made, condition) for condition in conditions)
    told = (
        f"Mean, and paired change against {made.reference} with its {1 - made.level:.0%} interval: Student's t over "
        f"the rounds' log ratios, called better or worse after Holm's correction for {made.comparisons} comparisons."
    )
    return charts + "".join(_rounds_table(made, condition) for condition in conditions) + note(told)


def _changes(made: PairedComparison, condition: str) -> str:
    """The reference stands at zero, so that arms have the colours that they have elsewhere."""
    cells = [cell for cell in made.cells if cell.condition == condition]
    figures = list(dict.fromkeys(cell.figure for cell in cells if cell.change is not None))
    traces = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm and cell.figure in figures]
        spread = {
            "type": "data", "symmetric": False, "width": 6, "visible": arm != made.reference,
            "array": [_percent(cell.high, cell) for cell in own],
            "arrayminus": [-_percent(cell.low, cell) for cell in own],
        }  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "markers", "name": label(arm), "x": [_percent(cell.change) for cell in own],
            "y": [label(cell.figure.replace("_", " ")) for cell in own], "error_x": spread, "marker": {"size": 10},
            "showlegend": True, "hovertemplate": "%{y}: %{x:+.1f} %<extra>" + label(arm) + "</extra>",
        })  # fmt: skip
    if not figures:
        return ""
    layout = {
        "height": 110 + 42 * len(figures),
        "xaxis": axis(f"change against {made.reference}, %", zeroline=True),
        "yaxis": {"type": "category", "range": [len(figures) - 0.5, -0.5]},
    }  # fmt: skip
    return chart(f"{condition}: change against {made.reference} (line: its interval)", traces, layout)


def _percent(value: float | None, of: PairedCell | None = None) -> float:
    """In percent; with `of`, the distance from that cell's change."""
    base = 0.0 if of is None or of.change is None else of.change
    return round(100.0 * ((value or 0.0) - base), 3)


def _rounds_table(made: PairedComparison, condition: str) -> str:
    cells = [cell for cell in made.cells if cell.condition == condition]
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    rows = []
    for figure in dict.fromkeys(cell.figure for cell in cells):
        by_arm = {cell.arm: cell for cell in cells if cell.figure == figure}
        shown = [_paired(by_arm[arm]) if arm in by_arm else "–" for arm in arms]
        rows.append([escape(figure.replace("_", " ")), *shown])
    return table([escape(condition), *map(escape, arms)], rows)


def _paired(cell: PairedCell) -> str:
    if cell.change is None or cell.low is None or cell.high is None:
        return f"{cell.mean:.4g}"
    interval = f"{cell.change:+.1%} ({cell.low:+.1%} … {cell.high:+.1%})"
    return f'{cell.mean:.4g}<br><span class="{cell.verdict.split()[0]}">{interval}, {cell.verdict}</span>'


def of_demo(demo: DemoResults) -> str:
    copies = [Bar(arm.title, arm.copies_per_token) for arm in demo.arms]
    balance = [Bar(arm.title, arm.balancedness) for arm in demo.arms]
    moved = [Bar(arm.title, arm.slots_moved) for arm in demo.arms]
    charts = [
        bars("Crossings, counted: less is better", "copies to other nodes per token", {"": copies}),
        bars("Evenness on held-out steps: more is better", "mean / busiest rank (1 = even)",
             {"": balance}, 1.0),
        bars("Weights moved: less is better", "expert slots", {"": moved}),
    ]  # fmt: skip
    rows = [[escape(name), *map(escape, cells)] for part in demo.table() for name, cells in part]
    told = (
        "One run. Counted from the routing of real requests: copies, balancedness, moves; latencies are this machine's."
    )
    heads = ["", *(escape(arm.title) for arm in demo.arms)]
    return note(demo.title) + side_by_side(charts) + table(heads, rows) + note(told)
