"""What is served, and what is asked of it: the trained model and text that it has not seen, unless others are named."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eplb_plugin.bench.server import ServerError
from eplb_plugin.errors import PluginError
from serving.made_model import make_model

_OURS = "serve_bench.run"  # a file by which a folder of results is known
ROOT = Path(__file__).resolve().parents[3]
SYNTHETIC = "synthetic"
MADE = ["--arch", "qwen3_moe", "--layers", "4", "--experts", "32", "--top-k", "4", "--hidden", "512"]
MADE += ["--intermediate", "128"]
HELP = (
    f"a checkpoint, or `{SYNTHETIC}`: routing made up, random prompts (default: the model of scripts/train_text_model, "
    "which is trained first if there is none, asked to go on with held-out text)"
)
KINDS = ("programs", "headers", "prose")
REQUESTS = 512  # of each kind
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 96), (32, 64)


@dataclass(frozen=True)
class Subject:
    """prompts: ShareGPT-format files, one kind of text each; none: random tokens."""

    model: Path
    prompts: tuple[Path, ...]


def checked_model(word: str) -> str:
    """For argparse's `type`: the word, or the whole path of the folder that it names."""
    if word == SYNTHETIC:
        return word
    if not Path(word).exists():
        raise argparse.ArgumentTypeError(f"found no {word}, expected a checkpoint's folder or {SYNTHETIC}")
    return str(Path(word).resolve())


def checked_file(word: str) -> Path:
    """For argparse's `type`."""
    if not Path(word).is_file():
        raise argparse.ArgumentTypeError(f"found no file {word}, expected one of requests")
    return Path(word).resolve()


def emptied(out: Path) -> None:
    """Ready for results. Raises ServerError: only what looks like an earlier run's folder is emptied."""
    if out.exists() and any(out.iterdir()) and not (out / _OURS).exists():
        raise ServerError(f"--out: found {out}, which is not empty and no earlier run's, expected a new folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _OURS).touch()


def prepared(out: Path, model: str | None, prompts: Sequence[Path], report: Callable[[str], None]) -> Subject:
    """model: as `checked_model` returns it. What is made lies in `out`. Raises ServerError."""
    if model == SYNTHETIC:
        return Subject(make_model(out / "model", MADE), tuple(prompts))
    if model is not None:
        return Subject(Path(model), tuple(prompts))
    from lab.text_model.store import model_folder  # torch is imported where text is read, not to print a help text
    from lab.text_model.train import Recipe

    folder = model_folder(Recipe(), report)
    return Subject(folder, tuple(prompts) or _held_out(folder, out / "prompts"))


def _held_out(model: Path, folder: Path) -> tuple[Path, ...]:
    """A file of requests for every kind of text."""
    from transformers import AutoTokenizer

    from lab.text_model.prompts import Part, make_requests, write_prompts

    tokenizer = AutoTokenizer.from_pretrained(model)
    folder.mkdir()
    files = tuple(folder / f"{kind}.json" for kind in KINDS)
    try:
        for kind, file in zip(KINDS, files, strict=True):
            part = Part((kind,), REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS)
            write_prompts(file, make_requests([part], tokenizer))
    except PluginError as error:
        raise ServerError(str(error)) from None
    return files
