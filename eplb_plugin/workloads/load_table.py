"""Read expert loads from a table of text: a layer a line, an expert a column, with or without names."""

from __future__ import annotations

import csv
import os

from ..errors import mismatch
from ..files import read_foreign
from ..statistics import RoutingStatistics
from .loads import Loads, refuse_sideways, window_of

INDEX = {"", "index", "layer", "layers", "layer_id", "layer_idx", "moe_layer"}  # names of a column of layer numbers


def read_load_table(path: str | os.PathLike[str], num_experts: int | None = None) -> tuple[RoutingStatistics, str]:
    """Load only, from numbers apart by commas, semicolons or tabs. The first line may name the columns; where it calls
    the first one a layer (or nothing, as pandas does), that column has the decoder layers. With a word on layers left
    out. Raises PluginError, with the line, on anything else.
    """
    text = read_foreign(path, "table").decode("utf-8-sig", "replace")
    first = text.split("\n", 1)[0]
    separator = next((one for one in ",;\t" if one in first), ",")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    cells = list(csv.reader([line for _, line in lines], delimiter=separator))
    numbered = False
    if cells and not (cells[0][0].strip() and all(_is_number(cell) for cell in cells[0] if cell.strip())):
        numbered = cells[0][0].strip().lower() in INDEX
        lines, cells = lines[1:], cells[1:]
    rows: list[list[float]] = []
    numbers: list[int] = []
    for (line, _), given in zip(lines, cells, strict=False):
        row = [cell.strip() for cell in given]
        while row and not row[-1]:
            row.pop()
        wrong = next((cell for cell in row if not _is_number(cell)), None)
        if wrong is not None or len(row) <= numbered:
            found = "no numbers" if wrong is None else repr(wrong[:40])
            raise mismatch(
                f"{path}: line {line}", found=found, expected="counts of a layer's experts", fix="correct this line"
            )
        values = [float(cell) for cell in row]
        if numbered and not (values[0].is_integer() and 0 <= values[0] < 2**31):
            fix = "begin the line with the decoder layer's number"
            raise mismatch(f"{path}: line {line}", found=row[0], expected="a decoder layer", fix=fix)
        numbers.append(int(values[0]) if numbered else len(rows))
        rows.append(values[numbered:])
    if not rows:
        raise mismatch(str(path), found="no line of numbers", expected="a layer a line", fix="pass a table of loads")
    if not numbered:
        refuse_sideways(path, len(rows), len(rows[0]), num_experts)
    return window_of(path, Loads(rows, numbers), num_experts)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
