"""Read a window of routing from a file: statistics, bare top-k ids, or a published load file."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..statistics import RoutingStatistics, load_window
from .load_file import read_load_file
from .responses import read_responses

MOST_EXPERTS = 4096  # above any model's; counting pairs takes memory for their square
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)
LAYERS_FIRST, TOKENS_FIRST = "layers-first", "tokens-first"


class Shape(NamedTuple):
    """What is known of a trace beside its ids; None = not known.

    layer_ids: for those that do not name their own. layout: LAYERS_FIRST, [layers, tokens, k], or TOKENS_FIRST. top_k,
    num_layers: of the model, decoder layers, to hold the trace against.
    """

    num_experts: int | None = None
    layer_ids: ArrayLike | None = None
    layout: str | None = None
    top_k: int | None = None
    num_layers: int | None = None


class Reading(NamedTuple):
    """understood: what was read, in one line. guessed: whether the number of experts was."""

    window: RoutingStatistics
    understood: str
    guessed: bool


def read_window(
    path: str | os.PathLike[str], num_experts: int | None = None, layer_ids: ArrayLike | None = None
) -> RoutingStatistics:
    """`read_trace` where no more is known of the shape."""
    return read_trace(path, Shape(num_experts, layer_ids)).window


def read_trace(path: str | os.PathLike[str], shape: Shape) -> Reading:
    """A window: a statistics file (`RoutingStatistics.save`), an .npz with `topk_ids: [layers, tokens, k]` where -1 is
    padding, a .json of loads (`load_file.py`), or a .jsonl of vLLM's answers (`responses.py`).

    An .npz may also hold `num_experts` and `layer_ids: [layers]`; where it does not, the shape's count, else the
    highest id and 0 … layers - 1. Raises PluginError in one line on anything else, and on ids that contradict the shape
    or are implausible: more layers than tokens, if no layout was named.
    """
    if shape.layout not in (None, LAYERS_FIRST, TOKENS_FIRST):
        expected = f"{LAYERS_FIRST} or {TOKENS_FIRST}"
        raise mismatch("layout", found=repr(shape.layout), expected=expected, fix="name one of them")
    kind, guess = os.fspath(path).lower().rpartition(".")[2], ""
    if kind == "json":
        window = read_load_file(path)
    elif kind in ("npz", "jsonl"):
        arrays = _read_npz(path) if kind == "npz" else _read_responses(path)
        ids = _layers_first(path, arrays["topk_ids"], None if kind == "jsonl" else shape.layout, kind)
        experts = _scalar(path, arrays["num_experts"]) if "num_experts" in arrays else shape.num_experts
        if experts is None:
            experts = max(int(ids.max(initial=0)) + 1, 1)
            guess = " (the highest id + 1: pass --num-experts or --model-config if the model has more)"
        if experts > MOST_EXPERTS:
            raise mismatch(f"{path}: experts", found=experts, expected=f"<= {MOST_EXPERTS}", fix="check the ids")
        layer_ids = shape.layer_ids
        if layer_ids is not None and len(np.asarray(layer_ids)) != len(ids):
            layer_ids = None  # those of another number of layers: for the caller to refuse
        window = _named(path, RoutingStatistics.from_topk, ids, experts, arrays.get("layer_ids", layer_ids))
    else:
        window = _named(path, lambda: load_window(path)[0])
    _refuse_other_models(path, window, shape)
    return Reading(window, f"{path}: {_described(window)}{guess}", bool(guess))


def _layers_first(path: str | os.PathLike[str], ids: NDArray[Any], layout: str | None, kind: str) -> NDArray[Any]:
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.shape[0]:
        found = f"topk_ids of shape {ids.shape} {ids.dtype}"
        raise mismatch(str(path), found=found, expected="integers [layers, tokens, k]", fix="write it again")
    if layout == TOKENS_FIRST:
        return ids.transpose(1, 0, 2)
    if layout is None and kind == "npz" and 1 < ids.shape[1] < ids.shape[0]:
        found = f"topk_ids {list(ids.shape)}: more layers than tokens"
        fix = f"pass --layout {TOKENS_FIRST}, or {LAYERS_FIRST} if that is so"
        raise mismatch(str(path), found=found, expected="[layers, tokens, k]", fix=fix)
    return ids


def _refuse_other_models(path: str | os.PathLike[str], window: RoutingStatistics, shape: Shape) -> None:
    """Where the user said what the model is."""
    checks: list[tuple[str, int, int | None]] = [("experts", window.num_experts, shape.num_experts)]
    if window.sample is not None:
        checks.append(("experts per token", window.sample.shape[2], shape.top_k))
    for what, found, expected in checks:
        if expected is not None and found != expected:
            raise mismatch(f"{path}: {what}", found=found, expected=expected, fix="pass a trace of this model")
    if shape.num_layers is not None and window.layer_ids[-1] >= shape.num_layers:
        last, most = int(window.layer_ids[-1]), f"< {shape.num_layers}"
        raise mismatch(f"{path}: last layer", found=last, expected=most, fix="pass a trace of this model")


def _described(window: RoutingStatistics) -> str:
    first, last = window.layer_ids[0], window.layer_ids[-1]
    layers = f"{window.num_layers} layers ({first} to {last})" if window.num_layers > 1 else f"layer {first}"
    tokens = f" × {window.num_tokens.max():,} tokens" if window.num_tokens.any() else ""
    rows = "loads only" if window.sample is None else f"top-{window.sample.shape[2]}"
    return f"{layers}{tokens}, {rows}, of {window.num_experts} experts"


def _read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (*UNREADABLE, AttributeError) as error:  # AttributeError: a bare .npy under this name
        raise PluginError(f"{path}: cannot be read as a trace ({error}); fix: write it again") from None
    if "topk_ids" not in arrays:
        found = ", ".join(arrays) or "no array"
        raise mismatch(str(path), found=found, expected="topk_ids [layers, tokens, k]", fix="name the array topk_ids")
    return arrays


def _read_responses(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    ids, layer_ids = read_responses(path)
    return {"topk_ids": ids, "layer_ids": layer_ids}


def _scalar(path: str | os.PathLike[str], array: NDArray[Any]) -> int:
    if array.shape != () or array.dtype.kind not in "iu" or int(array) < 1:
        raise mismatch(f"{path}: num_experts", found=array.tolist(), expected="one count", fix="write it again")
    return int(array)


def _named(path: str | os.PathLike[str], make: Any, *arguments: Any) -> RoutingStatistics:
    """`make`'s refusal with the file's name in front, so that one of several files can be told."""
    try:
        return make(*arguments)
    except PluginError as error:
        text = str(error)
        raise PluginError(text if text.startswith(str(path)) else f"{path}: {text}") from None
