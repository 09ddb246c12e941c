"""A trained model in a folder: a stock checkpoint, its tokenizer and what it was made from. Made once, then kept."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import corpus, routing
from .tokens import encode, make_tokenizer
from .train import Recipe, new_model, train

CARD = "lab.text_model.json"


def kept_folder(recipe: Recipe) -> Path:
    """Where this recipe's model lies, or will: in the user's cache folder."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "eplb_plugin" / f"text_model-{digest}"


def model_folder(recipe: Recipe, report: Callable[[str], None] = print) -> Path:
    """This recipe's model, trained now if there is none; half a model is never seen."""
    folder = kept_folder(recipe)
    if not (folder / CARD).exists():
        make(recipe, folder, report)
    return folder


def make(recipe: Recipe, folder: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, measure and save into `folder`, which is replaced as a whole -> its card."""
    learned, unseen = corpus.kinds(), corpus.kinds(held_out=True)
    tokenizer = make_tokenizer(learned, recipe.vocabulary)
    tokens = encode(learned, tokenizer)
    report("text: " + ", ".join(f"{kind} {len(found) / 1e3:.0f} k tokens" for kind, found in tokens.items()))
    model = new_model(recipe)
    steps = train(model, tokens, recipe, report)
    card = {
        "recipe": asdict(recipe),
        "steps": steps,
        "tokens_read": steps * recipe.batch * recipe.sequence,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "text": {kind: len(found) for kind, found in tokens.items()},  # tokens
        "figures": routing.figures(model, encode(unseen, tokenizer)),
    }
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        (beside / CARD).write_text(json.dumps(card, indent=2) + "\n")
        _put(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return card


def _put(beside: Path, folder: Path) -> None:
    if folder.exists():  # no file system replaces a full folder in one step
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        os.replace(folder, old)
        shutil.rmtree(old)
    os.replace(beside, folder)
