"""The report: what was measured, what to do next, and what placements do to recorded windows, as one HTML file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...errors import mismatch
from ...peo.timeline import MODEL_NOT_MEASUREMENT
from ..gantt import gantt
from .course import of_course
from .given import Given, Placed, View, placed
from .latencies import of_latencies
from .loads import of_loads
from .markup import coded
from .moves import of_moves
from .next_steps import of_advice
from .page import page
from .pairs import of_pairs
from .placements import of_placements
from .popularity import of_popularity
from .recorded import of_recorded
from .serving import of_demo, of_rounds, of_runs

__all__ = ["Given", "View", "report"]


class _Section(NamedTuple):
    """content: empty where nothing is given for it; source: the commands that supply it, and how it is passed."""

    heading: str
    content: Callable[[Given, Placed | None], str]
    source: str


def _result(given: Given, shown: Placed | None) -> str:
    parts = {
        "Servers under the same load": of_runs(given.arms) if given.arms else "",
        "Servers in paired rounds": "" if given.rounds is None else of_rounds(given.rounds),
        "The demo": "" if given.demo is None else of_demo(given.demo),
        "Placements on the newest window": "" if shown is None else of_placements(shown, given.view.dispatch),
    }
    return "".join(f"<h3>{heading}</h3>{content}" for heading, content in parts.items() if content)


SECTIONS = (
    _Section("The result", _result, "`eplb-plugin bench … --out runs`, then `--bench NAME=runs/NAME` for every arm"),
    _Section(
        "What to do next", lambda given, _: "" if given.advice is None else of_advice(given.advice),
        "`eplb-plugin advise TRACE … --json > advice.json`, then `--advice advice.json`",
    ),
    _Section("Over time", of_course, "a server's log, as `--log server.log`; or several windows, as `--trace` each"),
    _Section(
        "Load of ranks", lambda _, shown: "" if shown is None else of_loads(shown),
        "`eplb-plugin record window.safetensors …`, then `--trace window.safetensors`",
    ),
    _Section(
        "Experts used together", lambda given, shown: "" if shown is None else of_pairs(shown, given.view.layer),
        "`eplb-plugin record window.safetensors --state …`, which keeps whole rows, then `--trace window.safetensors`",
    ),
    _Section(
        "Moves", lambda _, shown: "" if shown is None else of_moves(shown),
        "`eplb-plugin plan TRACE … --out placement.safetensors`, then `--placement placement.safetensors`",
    ),
    _Section(
        "Popularity of experts",
        lambda _, shown: "" if shown is None else of_popularity(shown.newest, shown.newest_name),
        "`eplb-plugin record window.safetensors …`, then `--trace window.safetensors`",
    ),
    _Section(
        "Latencies", lambda given, _: of_latencies(given.arms, given.demo),
        "`eplb-plugin bench … --out runs`, then `--bench NAME=runs/NAME` for every arm",
    ),
    _Section("What was recorded", lambda given, _: of_recorded(given), "any of the files above"),
)  # fmt: skip


def report(title: str, given: Given) -> str:
    """HTML of whatever is given; what is not is named at the end, with the command that supplies it.

    Raises PluginError if there is nothing to show, if windows and placements are of different models, and without the
    library that draws charts.
    """
    shown = placed(given)
    made = [(one, one.content(given, shown)) for one in SECTIONS]
    sections = [(one.heading, content) for one, content in made if content]
    if given.simulated:
        drawn = f'<div class="drawn">{gantt(given.simulated)}</div>'
        sections.append((f"Per-expert overlap: {MODEL_NOT_MEASUREMENT}", drawn))
    if not sections:
        fix = "pass --trace, --bench or --log"
        raise mismatch("report", found="nothing to show", expected="traces, results or a log", fix=fix)
    absent = [f"<li>{one.heading}: {coded(one.source)}</li>" for one, content in made if not content]
    if absent:
        sections.append(("Not in this report", f"<ul>{''.join(absent)}</ul>"))
    return page(title, sections)
