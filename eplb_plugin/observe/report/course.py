"""Over time: rebalance by rebalance as a server's log tells them, and window by window under every placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...deployment import base_name
from ..rebalance_log import Rebalance
from .charts import axis, chart, label, side_by_side
from .given import Given, Placed
from .markup import note, table
from .placements import balance_of, judged

BALANCE = "balancedness (1 = even)"
COPIES = "copies to other nodes per token"
LINE = {"dash": "dot", "width": 1, "color": "#8b949e"}


def of_course(given: Given, shown: Placed | None) -> str:
    parts = [_of_log(model, found) for model, found in given.rebalances.items()]
    if shown is not None and len(shown.windows) > 1:
        parts.append(_of_windows(shown))
    return "".join(parts)


def _of_log(model: str, found: Sequence[Rebalance]) -> str:
    charts = [_between(found, [one.balancedness for one in found], "Balancedness from rebalance to rebalance", BALANCE)]
    crossing = [one for one in found if one.copies is not None]
    if crossing:
        values = [one.copies for one in crossing if one.copies is not None]
        charts.append(_between(crossing, values, "Crossings from rebalance to rebalance", COPIES))
    told = (
        f"{base_name(model)}, as the server's log tells it; dotted lines are rebalances. Every one judges "
        "the window that has just been served twice: under the placement that served it, which was not planned on it, "
        "and under the new one, which was, and so is flattered."
    )
    return side_by_side(charts) + note(told)


def _between(found: Sequence[Rebalance], values: Sequence[tuple[float, float]], caption: str, unit: str) -> str:
    """A line that steps at every rebalance; before it stands what was served, after it what the plan expects."""
    places = list(range(1, len(found) + 1))
    names = [f"rebalance {one.number}<br>{one.moved_slots} of {one.slots} slots move" for one in found]
    hover = "%{text}: %{y:.3f}"
    path = {
        "type": "scatter", "mode": "lines", "x": [x for x in places for _ in (0, 1)],
        "y": [y for two in values for y in two], "line": {"color": "#8b949e", "width": 1.5},
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    served, planned = (
        {"type": "scatter", "mode": "markers", "x": places, "y": [two[which] for two in values], "name": name,
         "text": names, "hovertemplate": hover, "marker": {"size": 9, "symbol": symbol}, "showlegend": True}
        for which, name, symbol in ((0, "as served", "circle"), (1, "by the new plan", "diamond-open"))
    )  # fmt: skip
    marks = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": LINE, "layer": "below"}
        for x in places
    ]
    ticks = {"tickvals": places, "ticktext": [str(one.number) for one in found]} if len(found) <= 20 else {}
    layout = {"xaxis": axis("rebalance", range=[0.5, len(found) + 0.5], **ticks), "yaxis": axis(unit), "shapes": marks}
    rows = [
        [str(one.number), f"{two[0]:.3f}", f"{two[1]:.3f}", str(one.moved_slots)]
        for one, two in zip(found, values, strict=True)
    ]
    heads = ["rebalance", "as served", "by the new plan", "slots moved"]
    return chart(caption, [path, served, planned], layout, table(heads, rows))


def _of_windows(shown: Placed) -> str:
    scores = {name: judged(shown.plans, window) for name, window in shown.windows.items()}
    balance: dict[str, list[float | None]] = {}
    copies: dict[str, list[float | None]] = {}
    for label_, made in shown.plans.items():
        for name, window in shown.windows.items():
            score = scores[name].get(label_)
            even = balance_of(window, made, score)
            balance.setdefault(label_, []).append(None if even is None else float(even.mean()))
            copies.setdefault(label_, []).append(None if score is None else float(score.cross_node_copies.mean()))
    charts = [_lines("Balancedness over the windows", balance, shown, BALANCE)]
    if any(scores.values()):
        charts.append(_lines("Crossings over the windows", copies, shown, COPIES))
    told = f"{len(shown.windows)} windows, oldest first: {', '.join(shown.windows)}. A placement is flattered by those "
    told += "that it was planned on."
    return side_by_side(charts) + note(told)


def _lines(caption: str, values: Mapping[str, Sequence[float | None]], shown: Placed, unit: str) -> str:
    names = [label(name) for name in shown.windows]
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "name": label(name), "x": names, "y": list(row),
         "showlegend": True, "hovertemplate": "%{x}: %{y:.3f}"}
        for name, row in values.items()
    ]  # fmt: skip
    rows = [[escape(name), *("–" if one is None else f"{one:.3f}" for one in row)] for name, row in values.items()]
    layout = {"xaxis": axis("window", type="category"), "yaxis": axis(unit)}
    return chart(caption, traces, layout, table(["placement", *map(escape, shown.windows)], rows))
