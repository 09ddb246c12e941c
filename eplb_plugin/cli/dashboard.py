"""`eplb-plugin dashboard`: the Grafana dashboard of the plugin's metrics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..errors import PluginError
from ..files import write_atomic

Out = Annotated[Path | None, typer.Option(help="File to write; default: print it.")]


def dashboard(out: Out = None) -> None:
    """Print or write the Grafana dashboard (JSON) of the metrics that a server with the plugin shows."""
    text = files("eplb_plugin.observe").joinpath("dashboards", "grafana.json").read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        raise PluginError(f"{out}: cannot be written ({error.strerror or error}); fix: name another file") from None
    typer.echo(f"{out}: import it in Grafana under Dashboards, New, Import")
