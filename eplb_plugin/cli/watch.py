"""`eplb-plugin watch URL`: a live view of what the plugin does in a running server, from its /metrics."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..errors import PluginError
from .options import Json

if TYPE_CHECKING:
    from ..observe.watching import Course, Reading

Url = Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:8000.")]
Every = Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two readings.")]
Once = Annotated[bool, typer.Option("--once", help="Read once, print and end.")]
ApiKey = Annotated[str | None, typer.Option(envvar="API_KEY", help="Of the server, where it wants one.")]


def watch(url: Url, every: Every = 2.0, once: Once = False, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show balance, crossings and rebalances of a running server until Ctrl-C; --json prints one reading and ends."""
    from ..observe.http import ask
    from ..observe.watching import Course, readings

    def read() -> dict[str, Reading]:
        return readings(ask(url, "/metrics", api_key).decode(errors="replace"))

    found, course = read(), Course()
    if as_json:
        typer.echo(json.dumps({model: reading.as_dict() for model, reading in found.items()}, indent=2))
        return
    course.add(found)
    console = Console()
    if once:
        console.print(_view(found, course))
        return
    problem = ""
    try:
        with Live(_view(found, course), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                try:
                    found, problem = read(), ""
                    course.add(found)
                except PluginError as error:  # a server that restarts: what was read last stays on the screen
                    problem = str(error)
                live.update(_view(found, course, problem), refresh=True)
    except KeyboardInterrupt:
        return


def _view(found: dict[str, Reading], course: Course, problem: str = "") -> Group:
    lines = []
    for model, one in found.items():
        lines += [Text(model, style="bold"), *_lines(one, course.line(model))]
    return Group(*lines, *([Text(problem, style="red")] if problem else []))


def _lines(one: Reading, line: str) -> list[Text]:
    rows = [("balancedness", _balance(one, line))]
    if one.per_step:
        rows.append(("  single steps", ", ".join(f"{value:.2f} by {name}" for name, value in one.per_step.items())))
    if one.copies is not None:
        leave = "" if one.crossing is None else f", {one.crossing:.0%} of all copies"
        planned = "" if one.planned_copies is None else f", planned {one.planned_copies:.2f}"
        rows.append(("to other nodes", f"{one.copies:.2f} copies per token{planned}{leave}"))
    rows.append(("rebalances", _results(one.rebalances) + _since(one.last_success)))
    if one.resplits:
        rows.append(("re-splits", _results(one.resplits)))
    rows.append(("moved", f"{one.moved_slots:,} slots, {one.moved_bytes / 1e9:,.2f} GB to other ranks"))
    if one.stages:
        rows.append(("stages", " · ".join(f"{name} {seconds:.2g} s" for name, seconds in one.stages.items())))
    texts = [Text(f"{name:<15} {text}") for name, text in rows]
    if one.stalled:
        texts.append(Text("a stage of a rebalance does not end: see the server's log", style="red"))
    return texts


def _balance(one: Reading, line: str) -> str:
    if one.balancedness is None:
        return "not known yet"
    least, mean, most = one.balancedness
    planned = "" if one.planned_balancedness is None else f", planned {one.planned_balancedness:.2f}"
    return f"{mean:.2f} (layers {least:.2f} to {most:.2f}){planned}  {line}"


def _results(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none yet"


def _since(timestamp: float | None) -> str:
    if not timestamp:
        return ""
    seconds = max(time.time() - timestamp, 0.0)
    ago = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"; the last accepted {ago} ago"
