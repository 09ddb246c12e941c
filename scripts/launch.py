"""What every command of this folder begins with: make the environment, then run a module with its Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from environment.build import SetupError, build
from environment.engines import ENGINES


def environment_python(engine: str = "vllm") -> str:
    """The engine's interpreter, after making its environment; ends the process with one line if that fails."""
    try:
        return str(build(ENGINES[engine]) / "bin" / "python")
    except SetupError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run_module(
    module: str, engine: str = "vllm", python: str | None = None, words: Sequence[str] | None = None
) -> NoReturn:
    """Become `python -m module`. python: default, that of the engine's environment; words: default, this command's."""
    python = python or environment_python(engine)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(
        python, [python, "-m", module, *(sys.argv[1:] if words is None else words)], {**os.environ, "PYTHONPATH": path}
    )
