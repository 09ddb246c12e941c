"""`eplb-plugin config check FILE` and `eplb-plugin config schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..settings.config import config_schema, load_config
from .options import Json

app = typer.Typer(help="Check a settings file, or print its schema.", no_args_is_help=True)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="YAML settings file.")], as_json: Json = False) -> None:
    """Print the settings that FILE resolves to, or what is wrong with it (exit code 2)."""
    config = load_config(file)
    if as_json:
        typer.echo(config.model_dump_json(indent=2))
    else:
        typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)


@app.command()
def schema(as_json: Json = True) -> None:
    """Print the JSON schema of the settings file, for editors."""
    typer.echo(config_schema())
