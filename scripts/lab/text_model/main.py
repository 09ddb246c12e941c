"""`scripts/train_text_model`: train the model of the serving benchmark, or show the one that was trained before."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from . import routing
from .store import CARD, kept_folder, make
from .train import Recipe


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/train_text_model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--out", type=Path, help="folder; default: one for this recipe in the user's cache folder")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="train even if the folder has a model")
    options = parser.parse_args()
    if not options.minutes > 0 or options.steps < 1 or options.threads < 1:
        parser.error("found --minutes, --steps or --threads below 1, expected more; fix: leave it out")
    torch.set_num_threads(options.threads)
    recipe = Recipe(minutes=options.minutes, steps=options.steps, seed=options.seed)
    folder = options.out or kept_folder(recipe)
    if options.again or not (folder / CARD).exists():
        began = time.monotonic()
        make(recipe, folder, lambda text: print(f"{time.monotonic() - began:4.0f} s  {text}", flush=True))
    card = json.loads((folder / CARD).read_text())
    print(f"{card['parameters'] / 1e6:.1f} M parameters, {card['tokens_read'] / 1e6:.2f} M tokens read")
    print(routing.show(card["figures"]))
    print(folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
