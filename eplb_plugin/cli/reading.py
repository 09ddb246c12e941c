"""How commands read traces: what the user says of their shape, and one line of what was understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import mismatch
from .placements import Existing

if TYPE_CHECKING:
    from ..workloads.trace import Reading, Shape

SHAPES = "What bare ids do not say (.npz, .npy, .jsonl)"
NumExperts = Annotated[
    int | None, typer.Option("--num-experts", min=1, help="Experts of a layer.", rich_help_panel=SHAPES)
]
Layout = Annotated[
    str | None,
    typer.Option("--layout", help="layers-first (default), or tokens-first, as vLLM has it.", rich_help_panel=SHAPES),
]
ModelConfig = Annotated[
    Path | None, typer.Option("--model-config", help="The model's config.json, instead.", rich_help_panel=SHAPES)
]


def shape_of(
    num_experts: int | None = None,
    layout: str | None = None,
    model_config: Path | None = None,
    existing: Existing | None = None,
) -> Shape:
    """What is known before a trace is read. Raises PluginError where two of the sources differ."""
    from ..workloads.model_config import read_model_config
    from ..workloads.trace import Shape

    numbered = None if existing is None else existing.known()
    model = None if model_config is None else read_model_config(model_config)
    known = {"--num-experts": num_experts}
    known[str(model_config)] = None if model is None else model.num_experts
    known["the placement"] = None if existing is None else existing.placement.num_experts
    given = {name: count for name, count in known.items() if count is not None}
    if len(set(given.values())) > 1:
        found = ", ".join(f"{count} by {name}" for name, count in given.items())
        raise mismatch("experts", found=found, expected="one count", fix="pass files of one model")
    return Shape(
        num_experts=next(iter(given.values()), None),
        layer_ids=None if numbered is None else numbered.layer_ids,
        layout=layout,
        top_k=None if model is None else model.top_k,
        num_layers=None if model is None else model.num_layers,
    )


def read_traces(paths: Sequence[Path], shape: Shape) -> list[Reading]:
    """Every window, in order. Raises PluginError for the first that cannot be read."""
    from ..workloads.trace import read_trace

    return [read_trace(path, shape) for path in paths]


def say_understood(readings: Sequence[Reading], as_json: bool, existing: Existing | None = None) -> None:
    """A line for each, before a command's answer; beside JSON, on stderr, only what was guessed."""
    if existing is not None and existing.understood is not None and not as_json:
        typer.echo(existing.understood)
    for reading in readings:
        if reading.guessed or not as_json:
            typer.echo(reading.understood, err=as_json)
