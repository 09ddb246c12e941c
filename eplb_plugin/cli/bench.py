"""`eplb-plugin bench`: none, vanilla and the plugin under load, on the user's own servers."""

from __future__ import annotations

import sys

import typer


def bench() -> None:
    """Measure no EPLB, the engine's own and the plugin on your own GPUs: a server per arm, the same load, one table.

    eplb-plugin bench --engine vllm --model M --redundant-experts 32 -- --data-parallel-size 8 --enable-expert-parallel
    """
    from ..bench.run import main

    raise typer.Exit(main(sys.argv[sys.argv.index("bench") + 1 :]))  # typer would drop the `--`
