"""`eplb-plugin …`: one small file per command. Bad input ends in one line on stderr and exit code 2."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import PluginError
from .advise import advise
from .bench import bench
from .compare import compare
from .config import app as config_app
from .dashboard import dashboard
from .doctor import doctor
from .export import export
from .peo import app as peo_app
from .plan import plan
from .precompile import precompile
from .record import record
from .replay import replay
from .report import report
from .watch import watch
from .workload import app as workload_app

_app = typer.Typer(
    help="Affinity-aware expert placement for vLLM and SGLang.", no_args_is_help=True, pretty_exceptions_enable=False,
    # `--rule` is the old name of `--dispatch` in every command: click looks both up by the same word
    context_settings={"token_normalize_func": lambda word: "dispatch" if word == "rule" else word},
)  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eplb-plugin {__version__}")
        raise typer.Exit


@_app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


_app.add_typer(config_app, name="config")
_app.add_typer(workload_app, name="workload")
_app.add_typer(peo_app, name="peo")
_app.command()(doctor)
_app.command()(record)
_app.command()(plan)
_app.command()(replay)
_app.command()(advise)
# its options are parsed by the benchmark itself, which takes the server's own behind `--`
_app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(bench)
_app.command()(compare)
_app.command()(report)
_app.command()(export)
_app.command()(watch)
_app.command()(dashboard)
_app.command()(precompile)


def app() -> None:
    """Console script."""
    compiling = logging.getLogger("eplb_plugin.compiling")  # see `jit.py`, whose import would take half a second here
    compiling.addHandler(logging.StreamHandler())
    compiling.setLevel(logging.DEBUG)
    try:
        _app()
    except PluginError as error:
        print(f"eplb-plugin: {error}", file=sys.stderr)
        raise SystemExit(2) from None
