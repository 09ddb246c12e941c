"""`eplb-plugin dashboard`: the Grafana dashboard of the plugin's metrics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..files import write_atomic
from .writing import writing

Out = Annotated[Path | None, typer.Option(help="File to write; default: print it.")]


def dashboard(out: Out = None) -> None:
    """Print or write the Grafana dashboard (JSON) of the metrics that a server with the plugin shows."""
    text = files("eplb_plugin.observe").joinpath("dashboards", "grafana.json").read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    with writing(out):
        write_atomic(out, text.encode())
    typer.echo(f"{out}: import it in Grafana under Dashboards, New, Import")
