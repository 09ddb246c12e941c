"""Charts as data: plotly.js stands once in the page, and draws every chart in the reader's colours.

A chart is the dictionary that plotly.js takes. No class of plotly's Python package is built: importing them takes
seconds, and tests hold the dictionaries to them (`Figure(chart)` refuses unknown names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import mismatch
from .markup import folded, table

Trace = Mapping[str, Any]
Numbers = NDArray[np.float64]
MARK = 'class="chart"'
LABEL, TITLE = 22, 26  # letters of a line of a label and of an axis, so that they fit a telephone
BASE = {"margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}}
# Stops of colours that the page's style names for either scheme. The second one grows with the square root, which shows
# weak values too.
WEAK_TO_STRONG = [[(step / 4) ** 2, f"--deep-{step}"] for step in range(5)]
DRAW = """
const scheme = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function template() {
  const paper = colour("--card"), axis = {
    gridcolor: colour("--line"), zerolinecolor: colour("--soft"), linecolor: colour("--soft"), automargin: true,
    fixedrange: true, title: {standoff: 8}, ticks: "outside", ticklen: 5, tickcolor: paper,
  };
  return {
    data: {bar: [{error_x: {color: colour("--ink")}}]},
    layout: {
      paper_bgcolor: paper, plot_bgcolor: paper, font: {color: colour("--ink"), family: "system-ui, sans-serif"},
      colorway: [0, 1, 2, 3, 4, 5].map(arm => colour(`--arm-${arm}`)), xaxis: axis, yaxis: axis,
      hoverlabel: {namelength: -1},
    },
  };
}
function draw() {
  return Promise.all([...document.querySelectorAll(".chart")].map(node => {
    const {data, layout} = JSON.parse(node.nextElementSibling.textContent);
    for (const trace of data)
      if (trace.colorscale) trace.colorscale = trace.colorscale.map(([at, name]) => [at, colour(name)]);
    return Plotly.react(node, data, {...layout, template: template()}, {responsive: true, displayModeBar: false});
  }));
}
const drawn = draw();
scheme.addEventListener("change", draw);
"""


def library() -> str:
    """plotly.js, from plotly's Python package. Raises PluginError without it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        fix = "pip install plotly (it comes with eplb-plugin[report])"
        raise mismatch("report", found="no package plotly", expected="plotly 6 or newer", fix=fix) from None
    return str(get_plotlyjs())


def chart(caption: str, traces: Sequence[Trace], layout: Mapping[str, Any], values: str = "") -> str:
    """A figure: its caption, which is also read aloud, the chart, and its values as a table that unfolds."""
    content = json.dumps({"data": traces, "layout": {"height": 320, **BASE, **layout}}, separators=(",", ":"))
    data = content.replace("<", "\\u003c")  # nothing in it ends the element
    more = folded("Values", values) if values else ""
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<div {MARK} role="img" aria-label="{escape(caption)}"></div>'
        f'<script type="application/json">{data}</script>{more}</figure>'
    )


def side_by_side(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def label(name: str, letters: int = LABEL) -> str:
    """A name in a chart: in as few lines as fit, of like length, and as it is, though plotly reads tags."""
    lines = wrap(name, letters)
    for narrower in range(letters - 1, 0, -1):
        if len(again := wrap(name, narrower)) > len(lines):
            break
        lines = again
    return "<br>".join(escape(line, quote=False) for line in lines) or " "


def axis(title: str, **more: Any) -> dict[str, Any]:
    """title: not yet escaped; in lines that fit beside the labels of the other axis."""
    return {"title": {"text": label(title, TITLE)}, **more}


def rounded(values: NDArray[Any], digits: int = 4) -> list[Any]:
    """So many digits of the largest, as lists of any depth."""
    most = float(np.abs(values).max(initial=0.0))
    decimals = max(digits - 1 - int(np.floor(np.log10(most))), 0) if most else 0
    return np.round(np.asarray(values, np.float64), decimals).tolist()


class Bar(NamedTuple):
    """low, high: ends of its spread; None where there is none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def bars(caption: str, unit: str, groups: Mapping[str, Sequence[Bar]], most: float | None = None) -> str:
    """Lying bars, which leave room for names: groups by label, one bar per name, in the same colour everywhere.

    most: end of the axis, where the figure cannot be larger.
    """
    names = list(dict.fromkeys(bar.name for group in groups.values() for bar in group))
    alone = len(groups) == 1
    traces, count = [], 0
    for number, name in enumerate(names):
        found = [(group, bar) for group, several in groups.items() for bar in several if bar.name == name]
        count += len(found)
        traces.append({
            "type": "bar", "orientation": "h", "name": label(name), "showlegend": not alone,
            "y": [label(name if alone else group) for group, _ in found], "x": [bar.value for _, bar in found],
            "text": [f"{bar.value:.4g}" for _, bar in found], "textposition": "inside", "insidetextanchor": "start",
            "textangle": 0, "error_x": _spread([bar for _, bar in found]), "offsetgroup": None if alone else number,
            "hovertemplate": "%{y}: %{x:.4g}<extra>" + label(name) + "</extra>",
        })  # fmt: skip
    ends = {} if most is None else {"range": [0, most]}
    layout = {
        "height": 90 + 40 * count, "barmode": "overlay" if alone else "group", "bargap": 0.3,
        "xaxis": axis(unit, rangemode="tozero", **ends), "yaxis": {"autorange": "reversed", "type": "category"},
    }  # fmt: skip
    spread = any(bar.low is not None for group in groups.values() for bar in group)
    heads = ["", escape(unit), *(["least", "most"] if spread else [])]
    rows = [
        [escape(bar.name if alone else f"{group}: {bar.name}"), f"{bar.value:.4g}", *(_ends(bar) if spread else [])]
        for group, several in groups.items() for bar in several
    ]  # fmt: skip
    return chart(caption, traces, layout, table(heads, rows))


def _ends(bar: Bar) -> list[str]:
    return ["–" if one is None else f"{one:.4g}" for one in (bar.low, bar.high)]


def _spread(found: Sequence[Bar]) -> dict[str, Any]:
    if any(bar.low is None or bar.high is None for bar in found):
        return {"visible": False}
    above = [(bar.high or 0.0) - bar.value for bar in found]
    below = [bar.value - (bar.low or 0.0) for bar in found]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5, "width": 6}
