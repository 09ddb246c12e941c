"""A small model whose routing is skewed and clustered by construction, made by scripts/make_model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from eplb_plugin.bench.server import ServerError

MAKER = Path(__file__).resolve().parents[1] / "make_model"


def make_model(folder: Path, words: Sequence[str]) -> Path:
    """Into `folder`, which is returned. words: further arguments of scripts/make_model. Raises ServerError."""
    done = subprocess.run([sys.executable, str(MAKER), str(folder), *words], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"making the model failed\n{done.stderr[-2000:]}")
    return folder
