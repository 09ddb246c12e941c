"""Read expert loads that others have published as JSON: one `heat` list per layer."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from ..errors import PluginError, mismatch
from ..files import read_foreign
from ..statistics import RoutingStatistics

EXPECTED = '{"layers": [{"layer": 0, "heat": [selections per expert]}, …]}'


def read_load_file(path: str | os.PathLike[str]) -> RoutingStatistics:
    """Load only, from {"layers": [{"layer": n, "heat": [E counts]}, …], "k": top-k}; other keys are not looked at.

    `layer` (default: the position) and `k` may be missing. Raises PluginError in one line on anything else.
    """
    document = _parsed(path)
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list) or not layers or not all(isinstance(one, dict) for one in layers):
        raise mismatch(str(path), found="no list of layers", expected=EXPECTED, fix="convert the file")
    heats = [one.get("heat") for one in layers]
    for number, heat in enumerate(heats):
        if not isinstance(heat, list) or not heat or not all(_is_count(value) for value in heat):
            raise mismatch(f"{path}: layers[{number}]", found="no counts", expected=EXPECTED, fix="convert the file")
        if len(heat) != len(heats[0]):
            found, expected = f"{len(heat)} experts", f"{len(heats[0])} as in the first layer"
            raise mismatch(f"{path}: layers[{number}]", found=found, expected=expected, fix="leave dense layers out")
    numbers = [one.get("layer", position) for position, one in enumerate(layers)]
    if not all(isinstance(number, int) and abs(number) < 2**31 for number in numbers):
        raise mismatch(f"{path}: layer", found="no number", expected="decoder-layer numbers", fix="number the layers")
    load = np.array(heats, np.float64)
    top_k = document.get("k")
    tokens: Any = None
    if isinstance(top_k, int) and 1 <= top_k <= load.shape[1]:
        tokens = np.rint(load.sum(axis=1) / top_k).astype(np.int64)
    try:
        return RoutingStatistics(load, num_tokens=tokens, layer_ids=np.array(numbers))
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None


def _parsed(path: str | os.PathLike[str]) -> Any:
    data = read_foreign(path, "load file")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PluginError(f"{path}: cannot be read as a load file ({error}); fix: pass JSON, {EXPECTED}") from None


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
