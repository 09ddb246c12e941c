"""`eplb-plugin export`: a placement file as an engine starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..placement import Placement
from .writing import writing

File = Annotated[Path, typer.Argument(help="Placement file, of `plan` or of a state directory.")]
Out = Annotated[Path, typer.Argument(help="File to write; its name ends in .json.")]
Engine = Annotated[str, typer.Option(help="sglang: for --init-expert-location.")]
NumLayers = Annotated[
    int | None,
    typer.Option(help="The model's decoder layers, dense ones too; default: up to the last MoE layer."),
]


def export(placement: File, out: Out, engine: Engine = "sglang", num_layers: NumLayers = None) -> None:
    """Write PLACEMENT as the file that SGLang's --init-expert-location reads, with or without the plugin."""
    placed = Placement.load(placement)
    with writing(out):
        placed.export(engine, out, num_layers)
    typer.echo(f"{out}: start SGLang with --init-expert-location {out}")
