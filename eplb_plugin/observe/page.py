"""One HTML file that needs nothing else: sections, tables, and a policy under which a browser loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

# The browser itself refuses every request; pictures are data, style and script stand in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .2em .8em; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 } td:first-child, th:first-child { text-align: left }
.pair { display: flex; flex-wrap: wrap; gap: 2em } figure { margin: .5em 0; flex: 1 1 420px }
figcaption, .note { color: #555; font-size: .9em } .matrix { width: 100%; border: 1px solid #999 }
.heat .matrix { height: 320px } .matrix image { image-rendering: pixelated }
.square { fill: none; stroke: #d9480f; stroke-width: 1.5; vector-effect: non-scaling-stroke }
.lines { width: 100% } .axis { font-size: 12px } .grid { stroke: #eee }
.better { color: #2e7d32 } .worse { color: #b2182b } .not { color: #777 }
output { display: block; min-height: 1.5em; font-variant-numeric: tabular-nums }
"""
# Pointing at a cell of a matrix shows its value below it.
SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-values]")) {
  const {rows, columns, values, names} = JSON.parse(document.getElementById(svg.dataset.values).textContent);
  const output = svg.parentElement.querySelector("output");
  svg.addEventListener("mousemove", event => {
    const box = svg.getBoundingClientRect();
    const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    const row = at((event.clientY - box.top) / box.height, rows.length);
    const column = at((event.clientX - box.left) / box.width, columns.length);
    output.textContent = `${names[0]} ${rows[row]}, ${names[1]} ${columns[column]}: ${values[row][column]}`;
  });
  svg.addEventListener("mouseleave", () => { output.textContent = ""; });
}
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """sections: (heading, HTML) in order."""
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>\n" for heading, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}<script>{SCRIPT}</script></body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already: `escape` what comes from outside."""
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure(picture: str, caption: str, values: str = "") -> str:
    """values: what `cell_values` made, for a matrix that shows them."""
    shown = f"{values}<output></output>" if values else ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}{shown}</figure>"


def cell_values(
    name: str, values: NDArray[np.float64], rows: Sequence[int], columns: Sequence[int], names: tuple[str, str]
) -> str:
    """The figures of a matrix under the id `name`: values [rows, columns], and what rows and columns are called."""
    content = {"rows": rows, "columns": columns, "values": np.round(values, 3).tolist(), "names": names}
    return f'<script type="application/json" id="{name}">{json.dumps(content)}</script>'
