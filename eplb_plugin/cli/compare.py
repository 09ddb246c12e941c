"""`eplb-plugin compare A B …`: serving benchmarks of several arms, ranked only where their spread allows it.

Or one file of paired rounds, which has all arms in it: see `compared_rounds`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import mismatch
from . import compared_rounds
from .options import Json

if TYPE_CHECKING:
    from ..observe.bench_results import Run

Arms = Annotated[
    list[str],
    typer.Argument(
        help="Folder or file of results per arm, or NAME=PATH; >= 3 runs each. The first is the reference. Or one "
        "results.json of scripts/serve_bench."
    ),
]
Level = Annotated[float, typer.Option(help="Chance of any false verdict in the table, where arms do not differ.")]


def compare(arms: Arms, level: Level = 0.05, as_json: Json = False) -> None:
    """Compare results of `vllm bench serve` or `sglang.bench_serving`: medians, spread, and what may be ranked.

    Settings must be equal. An arm is better or worse than the first if an exact rank-sum test over the runs says so,
    corrected for all comparisons of the table (Holm); else the two are not told apart. Arms that scripts/serve_bench
    has measured in paired rounds are compared round by round instead.
    """
    from ..observe.comparison import compare as compare_arms
    from ..observe.comparison_table import show
    from ..observe.paired_file import is_paired

    if len(arms) == 1 and is_paired(arms[0]):
        compared_rounds.show(arms[0], level, as_json)
        return
    made = compare_arms(read_arms(arms), level)
    if as_json:
        typer.echo(json.dumps(asdict(made), indent=2))
    else:
        show(made)


def read_arms(words: list[str]) -> dict[str, list[Run]]:
    """NAME=PATH or PATH -> the runs of every arm, in order; the name is the path's last part where none is given."""
    from ..observe.bench_results import read_runs

    arms: dict[str, list[Run]] = {}
    for word in words:
        name, path = word.split("=", 1) if "=" in word and not Path(word).exists() else ("", word)
        name = name or Path(path).stem or path
        if name in arms:
            raise mismatch("compare", found=f"two arms named {name}", expected="one", fix="name them: NAME=PATH")
        arms[name] = read_runs(path)
    return arms
