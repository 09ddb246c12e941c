"""Read a window of routing from a file: statistics, bare top-k ids, or loads."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..file_kinds import kind_of
from ..statistics import RoutingStatistics, load_window
from .load_file import read_load_file
from .load_table import read_load_table
from .loads import Loads, refuse_sideways, window_of
from .responses import read_responses
from .shared_experts import shared_columns

PLAUSIBLE_EXPERTS = 4096  # above any model's; counting pairs takes memory for their square
UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError,
    TokenError, SyntaxError,  # from numpy's parser of headers
)  # fmt: skip
LAYERS_FIRST, TOKENS_FIRST = "layers-first", "tokens-first"


Read = tuple[RoutingStatistics, str, bool]  # the window, a word on what was left out or guessed, whether it was


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
    """A window, from a file of any of these kinds, told by its content: statistics (`RoutingStatistics.save`); an .npz
    with `topk_ids: [layers, tokens, k]` where -1 is padding; an .npy of such ids, or of loads [layers, experts]; loads
    as JSON (`load_file.py`) or as a table (`load_table.py`); answers of a server (`responses.py`).

    An .npz may also hold `num_experts` and `layer_ids: [layers]`; where ids do not come with them, the shape's count,
    else the highest id and 0 … layers - 1. A column of fused shared experts is left out (`shared_experts.py`). Raises
    PluginError in one line on anything else, which says what the file is where that is known, and on ids that
    contradict the shape or are implausible: more layers than tokens, if no layout was named.
    """
    if shape.layout not in (None, LAYERS_FIRST, TOKENS_FIRST):
        expected = f"{LAYERS_FIRST} or {TOKENS_FIRST}"
        raise mismatch("layout", found=repr(shape.layout), expected=expected, fix="name one of them")
    kind = kind_of(path)
    ending = os.fspath(path).lower().rpartition(".")[2]
    name = _ENDINGS.get(ending, "statistics") if kind is None else kind.name  # for the refusal of a damaged file
    if kind is not None and name not in _READERS:
        raise mismatch(str(path), found=kind.what, expected="a trace (docs/tools.md)", fix=kind.belongs)
    window, note, guessed = _READERS[name](path, shape)
    _refuse_other_models(path, window, shape)
    what = f"{kind.what}, " if kind is not None and name not in ("statistics", "npz") else ""
    return Reading(window, f"{path}: {what}{_describe(window)}{note}", guessed)


def _statistics(path: str | os.PathLike[str], shape: Shape) -> Read:
    return _named(path, lambda: load_window(path)[0]), "", False


def _loads(path: str | os.PathLike[str], shape: Shape) -> Read:
    return *read_load_file(path, shape.num_experts), False


def _table(path: str | os.PathLike[str], shape: Shape) -> Read:
    return *read_load_table(path, shape.num_experts), False


def _answers(path: str | os.PathLike[str], shape: Shape) -> Read:
    model = None if shape.num_layers is None or shape.top_k is None else (shape.num_layers, shape.top_k)
    ids, layer_ids = read_responses(path, model)
    return _from_ids(path, ids, shape, layer_ids=layer_ids)


def _npz(path: str | os.PathLike[str], shape: Shape) -> Read:
    arrays = _read_npz(path)
    ids = _layers_first(path, arrays["topk_ids"], shape.layout)
    experts = _scalar(path, arrays["num_experts"]) if "num_experts" in arrays else None
    return _from_ids(path, ids, shape, experts, arrays.get("layer_ids"))


def _npy(path: str | os.PathLike[str], shape: Shape) -> Read:
    try:
        array = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise PluginError(f"{path}: cannot be read as an .npy array ({error}); fix: write it with numpy.save") from None
    if array.ndim == 2 and array.dtype.kind in "iuf" and array.size:
        refuse_sideways(path, array.shape[0], array.shape[1], shape.num_experts)
        return *window_of(path, Loads(array.tolist(), range(len(array))), shape.num_experts), False
    if array.ndim != 3:
        expected = "loads [layers, experts] or top-k ids [layers, tokens, k]"
        fix = "save the array in one of these shapes"
        raise mismatch(str(path), found=f"shape {array.shape} {array.dtype}", expected=expected, fix=fix)
    return _from_ids(path, _layers_first(path, array, shape.layout), shape)


_READERS: dict[str, Callable[[str | os.PathLike[str], Shape], Read]] = {
    "statistics": _statistics, "npz": _npz, "npy": _npy, "loads": _loads, "counts": _loads, "table": _table,
    "answers": _answers,
}  # fmt: skip
_ENDINGS = {"npz": "npz", "npy": "npy", "json": "loads", "csv": "table", "tsv": "table", "jsonl": "answers"}


def _from_ids(
    path: str | os.PathLike[str],
    ids: NDArray[Any],
    shape: Shape,
    experts: int | None = None,
    layer_ids: ArrayLike | None = None,
) -> Read:
    """ids: [L, T, k]; experts, layer_ids: what the file itself says of them."""
    experts, note, guessed = experts or shape.num_experts, "", False
    shared = shared_columns(ids, experts)
    if shared.any():
        first = int(ids[:, :, shared][ids[:, :, shared] >= 0].min())
        ids, experts = ids[:, :, ~shared], experts or first
        note = f"; {shared.sum()} of the columns left out: fused shared experts (ids from {first})"
    if experts is None:
        experts, guessed = max(int(ids.max(initial=0)) + 1, 1), True
        note += " (the highest id + 1: pass --num-experts or --model-config if the model has more)"
    if experts > PLAUSIBLE_EXPERTS:
        fix = "check that the array holds expert ids"
        raise mismatch(f"{path}: experts", found=experts, expected=f"<= {PLAUSIBLE_EXPERTS}", fix=fix)
    if layer_ids is None and shape.layer_ids is not None and len(np.asarray(shape.layer_ids)) == len(ids):
        layer_ids = shape.layer_ids  # those of another number of layers are for the caller to refuse
    return _named(path, RoutingStatistics.from_topk, ids, experts, layer_ids), note, guessed


def _layers_first(path: str | os.PathLike[str], ids: NDArray[Any], layout: str | None) -> NDArray[Any]:
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.shape[0]:
        found = f"topk_ids of shape {ids.shape} {ids.dtype}"
        raise mismatch(str(path), found=found, expected="integers [layers, tokens, k]", fix="save it so")
    if layout == TOKENS_FIRST:
        return ids.transpose(1, 0, 2)
    if layout is None and 1 < ids.shape[1] < ids.shape[0]:
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


def _describe(window: RoutingStatistics) -> str:
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
        raise PluginError(f"{path}: cannot be read as a trace ({error}); fix: write it with numpy.savez") from None
    if "topk_ids" not in arrays:
        found = ", ".join(arrays) or "no array"
        raise mismatch(str(path), found=found, expected="topk_ids [layers, tokens, k]", fix="name the array topk_ids")
    return arrays


def _scalar(path: str | os.PathLike[str], array: NDArray[Any]) -> int:
    if array.shape != () or array.dtype.kind not in "iu" or int(array) < 1:
        raise mismatch(f"{path}: num_experts", found=array.tolist(), expected="one count", fix="save one integer")
    return int(array)


def _named(path: str | os.PathLike[str], make: Any, *arguments: Any) -> RoutingStatistics:
    """`make`'s refusal with the file's name in front, so that one of several files can be told."""
    try:
        return make(*arguments)
    except PluginError as error:
        text = str(error)
        raise PluginError(text if text.startswith(str(path)) else f"{path}: {text}") from None
