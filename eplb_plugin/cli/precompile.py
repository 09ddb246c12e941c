"""`eplb-plugin precompile`: fill the cache of compiled kernels, e.g. while a container image is built."""

from __future__ import annotations

import json
from typing import Annotated, get_args

import typer

from ..plan_types import Dispatch
from .options import Json

Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="May be repeated; default: affinity and balanced.")
]
Dispatches = Annotated[list[str] | None, typer.Option("--dispatch", help="May be repeated; default: all.")]


def precompile(policy: Policies = None, dispatch: Dispatches = None, as_json: Json = False) -> None:
    """Compile the planner's kernels for this machine, so that neither `plan` nor a server's start waits for them.

    They are kept in NUMBA_CACHE_DIR, else beside the package, else in the user's cache folder, and are used on CPUs
    with the same features by the same versions of the package and of numba.
    """
    from ..dispatch.rules import checked_rule
    from ..errors import mismatch
    from ..jit import is_cached
    from ..planning.checks import checked_policy
    from ..runtime.precompile import compile_for

    policies = [checked_policy(name) for name in policy or ("affinity", "balanced")]
    dispatches = [checked_rule(name) for name in dispatch or get_args(Dispatch)]
    if not is_cached():
        raise mismatch("cache", found="no writable folder", expected="one", fix="set NUMBA_CACHE_DIR")
    seconds = {}
    for one in policies:
        for other in dispatches:
            seconds[f"{one}, {other}"] = compile_for(one, other)
            if not as_json:
                typer.echo(f"{one}, {other}: {seconds[f'{one}, {other}']:.1f} s")
    if as_json:
        typer.echo(json.dumps({"seconds": seconds}, indent=2))
