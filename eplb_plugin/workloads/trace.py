"""Read a window of routing from a file: statistics, bare top-k ids, or a published load file."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import PluginError, mismatch
from ..statistics import RoutingStatistics, load_window
from .load_file import read_load_file
from .responses import read_responses

MOST_EXPERTS = 4096  # above any model's; counting pairs takes memory for their square
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def read_window(
    path: str | os.PathLike[str], num_experts: int | None = None, layer_ids: ArrayLike | None = None
) -> RoutingStatistics:
    """A statistics file (`RoutingStatistics.save`), an .npz with `topk_ids: [layers, tokens, k]`, -1 = padding, a .json
    of loads (`load_file.py`), or a .jsonl of vLLM's answers (`responses.py`).

    An .npz may also hold `num_experts` and `layer_ids: [layers]`; where it does not, the arguments count, else the
    highest id and 0 … layers - 1. Raises PluginError in one line on anything else.
    """
    if os.fspath(path).lower().endswith(".json"):
        return read_load_file(path)
    if os.fspath(path).lower().endswith((".npz", ".jsonl")):
        arrays = _read_npz(path) if os.fspath(path).lower().endswith(".npz") else _read_responses(path)
        ids = arrays["topk_ids"]
        if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.shape[0]:
            found = f"topk_ids of shape {ids.shape} {ids.dtype}"
            raise mismatch(str(path), found=found, expected="integers [layers, tokens, k]", fix="write it again")
        if "num_experts" in arrays:
            num_experts = _scalar(path, arrays["num_experts"])
        if num_experts is None:
            num_experts = max(int(ids.max(initial=0)) + 1, 1)
        if num_experts > MOST_EXPERTS:
            raise mismatch(f"{path}: experts", found=num_experts, expected=f"<= {MOST_EXPERTS}", fix="check the ids")
        if layer_ids is not None and len(np.asarray(layer_ids)) != len(ids):
            layer_ids = None  # those of another number of layers: for the caller to refuse
        return _named(path, RoutingStatistics.from_topk, ids, num_experts, arrays.get("layer_ids", layer_ids))
    return _named(path, lambda: load_window(path)[0])


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
