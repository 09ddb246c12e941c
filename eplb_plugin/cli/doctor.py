"""`eplb-plugin doctor`: would the plugin work with the engine installed here?"""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..errors import mismatch
from .options import Json

# "fail" ends the command with exit code 1; "not needed" is an engine that is not installed
Row = dict[str, str]


def doctor(as_json: Json = False) -> None:
    """List every hook with ok, fail (found / expected / fix) or not needed. Exit code 1 if one fails."""
    rows = _vllm_rows()
    if as_json:
        typer.echo(json.dumps({"eplb_plugin": __version__, "hooks": rows}, indent=2))
    else:
        _print(rows)
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)


def _vllm_rows() -> list[Row]:
    if find_spec("vllm") is None:
        return [_row("-", "-", "not needed", "vLLM is not installed")]
    logging.disable(logging.INFO)  # importing vLLM logs what it found; only our table is wanted
    from ..engines import hooks

    try:
        from ..engines.vllm.activation import TESTED, installed_version
        from ..engines.vllm.entrance import ENTRANCE
        from ..engines.vllm.runtime import RUNTIME
    except ImportError as error:
        found = f"nothing to import ({error})"
        refusal = mismatch("vLLM", found=found, expected="the modules we hook", fix=hooks.OTHER_ENGINE)
        return [_row("vLLM", "import", "fail", str(refusal))]

    found = installed_version()
    status = "ok" if found == TESTED else "untested"
    rows = [_row(f"vLLM {found}", "version", status, f"tested: {TESTED}")]
    for one in hooks.check([*ENTRANCE, *RUNTIME]):
        hook, problem = one.hook, one.problem
        rows.append(_row(hook.target, hook.kind, "fail" if problem else "ok", problem or hook.why))
    return rows


def _row(target: str, kind: str, status: str, detail: str) -> Row:
    return {"engine": "vllm", "target": target, "kind": kind, "status": status, "detail": detail}


def _print(rows: list[Row]) -> None:
    table = Table("hook", "kind", "status", "why, or what is wrong", title=f"eplb-plugin {__version__}")
    colours = {"ok": "green", "fail": "red", "untested": "yellow"}
    for row in rows:
        colour = colours.get(row["status"], "dim")
        table.add_row(
            row["target"].rpartition(":")[2], row["kind"], f"[{colour}]{row['status']}[/]", escape(row["detail"])
        )
    Console().print(table)
