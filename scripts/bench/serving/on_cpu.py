"""`scripts/serve_bench --cpu`: the user's benchmark in the test bed, with its layout and a small model made for it."""

from __future__ import annotations

import sys
from pathlib import Path

from eplb_plugin.bench.run import main
from serving.made_model import make_model

SMALL_MODEL = ["--arch", "qwen3_moe", "--layers", "4", "--experts", "32", "--top-k", "4"]


def small_model(folder: Path) -> Path:
    return make_model(folder, SMALL_MODEL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], small_model))
