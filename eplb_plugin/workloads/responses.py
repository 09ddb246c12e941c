"""Routing that vLLM returns with its answers (`--enable-return-routed-experts`), kept as one JSON answer per line."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, mismatch
from ..files import read_foreign
from ..routing_rows import name_twice

EXPECTED = "answers of vLLM, one JSON object a line, with choices[].routed_experts (base64 of .npy)"


def read_responses(path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Top-k ids [layers, tokens, k] of all answers together, and the decoder-layer numbers of these layers.

    vLLM returns [tokens, all decoder layers, k], in which a dense layer is all zeros: no router chooses an expert
    twice, so a layer is left out whose rows mostly do. (Of a top-1 model nothing tells a dense layer from one whose
    tokens all choose expert 0: those stay.) Raises PluginError for anything else, with the number of the line.
    """
    blocks: list[NDArray[Any]] = []
    number = 0
    try:
        for line in read_foreign(path, "file of answers").decode().splitlines():
            number += 1
            blocks += _blocks(json.loads(line)) if line.strip() else []
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, EOFError, MemoryError) as error:
        reason = f"line {number}, {type(error).__name__}: {error}"[:200]
        raise PluginError(f"{path}: cannot be read as {EXPECTED} ({reason}); fix: save whole answers") from None
    if not blocks:
        fix = "start vLLM with --enable-return-routed-experts"
        raise mismatch(str(path), found="no routed_experts", expected=EXPECTED, fix=fix)
    shapes = {block.shape[1:] for block in blocks}
    if len(shapes) != 1 or any(block.ndim != 3 or block.dtype.kind not in "iu" for block in blocks):
        found = f"arrays of shapes {sorted(map(str, shapes))}"
        raise mismatch(str(path), found=found, expected="integers [tokens, layers, k] of one model", fix="split it")
    ids = np.concatenate(blocks).astype(np.int64).transpose(1, 0, 2)
    layers = np.flatnonzero(_is_routed(ids))
    if not len(layers):
        raise mismatch(str(path), found="no token", expected="answers to requests", fix="record it again")
    return ids[layers], layers.astype(np.int32)


def _is_routed(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """ids: [layers, tokens, k] -> [layers] whether at least half of a layer's rows are routings."""
    given = np.any(ids >= 0, axis=2)
    routings = given & ~name_twice(ids)
    found: NDArray[np.bool_] = given.any(axis=1) & (2 * routings.sum(axis=1) >= given.sum(axis=1))
    return found


def _blocks(answer: Any) -> Iterator[NDArray[Any]]:
    for choice in answer["choices"]:
        given = choice.get("routed_experts")
        if given is not None:
            try:
                data = base64.b64decode(given, validate=True)
                yield np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-untyped-call]
            except (binascii.Error, TokenError) as error:  # the latter from numpy's parser of headers
                raise ValueError(error) from None
