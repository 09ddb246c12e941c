"""Read expert loads that others keep as JSON: one `heat` list per layer, or SGLang's `logical_count`."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from ..errors import PluginError, mismatch
from ..files import read_foreign
from ..statistics import RoutingStatistics
from .loads import Loads, window_of

EXPECTED = '{"layers": [{"layer": 0, "heat": [selections per expert]}, …]}'


def read_load_file(path: str | os.PathLike[str], num_experts: int | None = None) -> tuple[RoutingStatistics, str]:
    """Load only, from {"layers": [{"layer": n, "heat": [E counts]}, …], "k": top-k}; other keys are not looked at.

    `layer` (default: the position) and `k` may be missing. Or from {"logical_count": [L, E] or [steps, L, E]}, which
    SGLang's `--init-expert-location` takes: layers without a selection, which are dense, are left out. With a word on
    layers left out. Raises PluginError in one line on anything else.
    """
    document = _parse(path)
    if isinstance(document, dict) and "logical_count" in document:
        return window_of(path, _counts(path, document["logical_count"]), num_experts)
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list) or not layers or not all(isinstance(one, dict) for one in layers):
        raise mismatch(str(path), found="no list of layers", expected=EXPECTED, fix="write the file in this form")
    heats = [one.get("heat") for one in layers]
    for number, heat in enumerate(heats):
        if not isinstance(heat, list) or not heat or not all(_is_count(value) for value in heat):
            fix = "write the file in this form"
            raise mismatch(f"{path}: layers[{number}]", found="no counts", expected=EXPECTED, fix=fix)
    numbers = [one.get("layer", position) for position, one in enumerate(layers)]
    if not all(isinstance(number, int) and abs(number) < 2**31 for number in numbers):
        fix = "give every layer the number of its decoder layer"
        raise mismatch(f"{path}: layer", found="no number", expected="decoder-layer numbers", fix=fix)
    top_k = document.get("k")
    return window_of(path, Loads(heats, numbers, top_k if isinstance(top_k, int) else 0), num_experts)


def _counts(path: str | os.PathLike[str], given: Any) -> Loads:
    try:
        counts = np.array(given)
    except (ValueError, OverflowError):  # rows of several lengths
        counts = np.empty(0)
    counts = counts[None] if counts.ndim == 2 else counts
    if counts.ndim != 3 or counts.dtype.kind not in "iuf" or not counts.size or not (counts >= 0).all():
        expected = "counts [layers, experts] or [steps, layers, experts]"
        found = f"{counts.shape} {counts.dtype}"
        raise mismatch(f"{path}: logical_count", found=found, expected=expected, fix="write the counts in this form")
    load = counts.sum(0, dtype=np.float64)
    layers = np.flatnonzero(load.any(1))
    if not len(layers):
        fix = "record while the server has traffic"
        raise mismatch(f"{path}: logical_count", found="no selection", expected="counts of traffic", fix=fix)
    return Loads(load[layers].tolist(), layers.tolist())


def _parse(path: str | os.PathLike[str]) -> Any:
    data = read_foreign(path, "load file")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PluginError(f"{path}: cannot be read as a load file ({error}); fix: pass JSON, {EXPECTED}") from None


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
