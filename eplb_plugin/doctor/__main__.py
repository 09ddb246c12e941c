"""`torchrun --nproc-per-node N -m eplb_plugin.doctor [--json FILE]`: the checks that take several GPUs."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..cli.writing import writing
from ..errors import PluginError
from . import ranks, single
from .site import CudaSite

File = Annotated[
    Path | None, typer.Option("--json", help="Write what was found to this file, for a report of a fault.")
]


def run(file: File = None) -> None:
    """Run the checks on the GPUs of torchrun's processes. Exit code 1 if one fails."""
    index = ranks.local_rank()
    single.refuse_no_gpu(index + 1)
    with writing(file) if file else nullcontext():
        report = ranks.examine(CudaSite(index), file)
    if index == 0:
        report.show()


def main() -> None:
    try:
        typer.run(run)
    except PluginError as error:
        print(f"eplb-plugin: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
