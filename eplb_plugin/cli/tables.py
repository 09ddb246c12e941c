"""Tables of figures in a terminal of 80 columns: no frames, one space between columns, no cell cut or folded."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table


def slim(*heads: str) -> Table:
    """The first column names the row."""
    columns = [Column(head, no_wrap=True) for head in heads]
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, padding=0)


def show(title: str, table: Table, notes: Iterable[str] = ()) -> None:
    """On stdout, which may be a file: as wide as the table is, whatever the terminal says."""
    if title:
        typer.echo(title)
    Console(width=max(Console().width, 100)).print(table)
    for note in notes:
        typer.echo(note)
