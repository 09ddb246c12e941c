"""`eplb-plugin export`: a placement file as another program starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..placement import load_placement
from ..placement_formats import FORMATS
from .writing import writing

File = Annotated[Path, typer.Argument(help="Placement file, of `plan` or of a state directory.")]
Out = Annotated[Path, typer.Argument(help="File to write: .json, for TensorRT-LLM .yaml.")]
For = Annotated[str, typer.Option("--for", help=f"Who reads it: {', '.join(FORMATS)}.")]
NumLayers = Annotated[
    int | None,
    typer.Option(help="For SGLang: the model's decoder layers, dense ones too; default: up to the last MoE layer."),
]


def export(placement: File, out: Out, reader: For = "sglang", num_layers: NumLayers = None) -> None:
    """Write PLACEMENT as the file that SGLang, vllm-ascend or TensorRT-LLM starts from, without the plugin."""
    placed, header = load_placement(placement)
    with writing(out):
        placed.export(reader, out, num_layers, header.get("num_ranks"))
    typer.echo(f"{out}: {FORMATS[reader].use.format(path=out)}")
