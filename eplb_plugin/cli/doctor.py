"""`eplb-plugin doctor`: would the plugin work with the engines, or the GPU, of this machine?"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..engines.releases import ENGINES, Engine
from ..errors import mismatch
from ..settings.config import load_config
from .options import Json
from .writing import writing

# "fail" ends the command with exit code 1; "not needed" is an engine that is not installed
Row = dict[str, str]


Settings = Annotated[Path | None, typer.Option("--config", help="Settings: list also the hooks that they ask for.")]
Gpu = Annotated[
    bool, typer.Option("--gpu", help="Check instead what a GPU does, on the first one; 10 minutes at most.")
]
File = Annotated[Path | None, typer.Argument(help="With --gpu: write what --json prints here, and show the table too.")]


def doctor(file: File = None, config: Settings = None, gpu: Gpu = False, as_json: Json = False) -> None:
    """List every hook with ok, fail (found / expected / fix) or not needed. Exit code 1 if one fails.

    With --gpu: run every check of what only a GPU shows; `eplb-plugin doctor --gpu --json FILE` makes the file to
    attach to a report of a fault.
    """
    if gpu:
        _check_gpu(file, as_json)
        return
    if file is not None:
        raise mismatch("doctor", found=f"{file}", expected="a file only with --gpu", fix="redirect what --json prints")
    peo = config is not None and load_config(config).peo is not None
    rows = [row for engine in ENGINES for row in _rows(engine, peo)]
    if as_json:
        typer.echo(json.dumps({"eplb_plugin": __version__, "hooks": rows}, indent=2))
    else:
        _print(rows)
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)


def _check_gpu(file: Path | None, as_json: bool) -> None:
    """Torch comes with the engine: imported where it is needed."""
    try:
        from ..doctor import single
        from ..doctor.site import CudaSite
    except ImportError as error:
        fix = "run it in the engine's environment"
        raise mismatch("doctor", found=f"nothing to import ({error})", expected="torch", fix=fix) from None
    single.refuse_no_gpu()
    with writing(file) if file else nullcontext():
        report = single.examine(CudaSite(), file)
    if as_json and file is None:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        report.show()
    if "failed" in report:
        raise typer.Exit(1)


def _rows(engine: Engine, peo: bool) -> list[Row]:
    """The release of an engine and the state of every hook into it; peo: also of those for per-expert overlap."""

    def row(target: str, kind: str, status: str, detail: str) -> Row:
        return {"engine": engine.package, "target": target, "kind": kind, "status": status, "detail": detail}

    release = engine.installed
    if release is None:
        return [row(engine.title, "-", "not needed", f"{engine.title} is not installed")]
    logging.disable(logging.INFO)  # importing an engine logs and warns of what it found; only our table is wanted
    from ..engines import attributes, hooks

    try:
        with warnings.catch_warnings(action="ignore"):
            tables = ["startup_hooks", "worker_hooks", *(["peo"] if peo else [])]
            reads = import_module(f"eplb_plugin.engines.{engine.package}.reads")
            lacking = attributes.missing(reads.READS)
            if peo:  # DeepEP, without which some of these cannot be imported, is on GPUs only
                lacking += attributes.missing(reads.PEO_READS, load=False)
            modules = [import_module(f"eplb_plugin.engines.{engine.package}.{name}") for name in tables]
            statuses = hooks.check(
                row for name, module in zip(tables, modules, strict=True) for row in getattr(module, name.upper())
            )
    except ImportError as error:
        found = f"nothing to import ({error})"
        refusal = mismatch(engine.title, found=found, expected="the modules we hook", fix=hooks.OTHER_ENGINE)
        return [row(engine.title, "import", "fail", str(refusal))]
    status = "ok" if release in engine.tested else "untested"
    rows = [row(f"{engine.title} {release}", "version", status, f"tested: {', '.join(engine.tested)}")]
    for one in statuses:
        hook, problem = one.hook, one.problem
        rows.append(row(hook.target, hook.kind, "fail" if problem else "ok", problem or hook.why))
    detail = "; ".join(map(str, lacking)) or "every attribute that the plugin reads is there"
    rows.append(row(f"{engine.title}'s classes", "reads", "fail" if lacking else "ok", detail))
    return rows


def _print(rows: list[Row]) -> None:
    table = Table("hook", "kind", "status", "why, or what is wrong", title=f"eplb-plugin {__version__}")
    colours = {"ok": "green", "fail": "red", "untested": "yellow"}
    for row in rows:
        colour = colours.get(row["status"], "dim")
        table.add_row(
            row["target"].rpartition(":")[2], row["kind"], f"[{colour}]{row['status']}[/]", escape(row["detail"])
        )
    Console().print(table)
