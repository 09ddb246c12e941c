"""Routing that a server returns with its answers, kept as one JSON answer per line.

vLLM and SGLang: `--enable-return-routed-experts`; dynamo: `nvext.extra_fields: [routed_experts]` (its docs on `nvext`).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, mismatch
from ..files import read_foreign
from ..routing_rows import name_twice

EXPECTED = "answers of a server, one JSON object a line, with routed_experts"
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.int64}  # of an id, where its type is not said
Model = tuple[int, int] | None  # decoder layers and experts per token


class _NoShape(ValueError):
    """Bytes of ids that do not say how they are arranged."""


def read_responses(path: str | os.PathLike[str], model: Model = None) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Top-k ids [layers, tokens, k] of all answers together, and the decoder-layer numbers of these layers.

    A server returns [tokens, all decoder layers, k]: vLLM with its choices, as base64 of an .npy; dynamo in `nvext`, as
    base64 with a shape; SGLang in `meta_info`, or `sglext` where it answers as OpenAI does, as base64 of int32, to
    which `model` is needed. A dense layer is all zeros: no router chooses an expert twice, so a layer is left out whose
    rows mostly do. (Of a top-1 model nothing tells a dense layer from one whose tokens all choose expert 0: those
    stay.) Raises PluginError for anything else, with the number of the line.
    """
    blocks: list[NDArray[Any]] = []
    number = 0
    try:
        for number, text in _parts(read_foreign(path, "file of answers").decode()):  # noqa: B007 (the refusals have it)
            document = json.loads(text)
            for answer in document if isinstance(document, list) else [document]:  # SGLang's, of several prompts
                blocks += (_decode(*payload, model) for payload in _payloads(answer))
    except _NoShape:
        found = f"line {number}, routed_experts without a shape, as SGLang has them"
        expected = "the model's layers and experts per token"
        raise mismatch(str(path), found=found, expected=expected, fix="pass --model-config config.json") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, EOFError, MemoryError) as error:
        reason = f"line {max(number, 1)}, {type(error).__name__}: {error}"[:200]
        raise PluginError(f"{path}: cannot be read as {EXPECTED} ({reason}); fix: save whole answers") from None
    if not blocks:
        fix = "start vLLM with --enable-return-routed-experts"
        raise mismatch(str(path), found="no routed_experts", expected=EXPECTED, fix=fix)
    shapes = {block.shape[1:] for block in blocks}
    if len(shapes) != 1 or any(block.ndim != 3 or block.dtype.kind not in "iu" for block in blocks):
        found = f"arrays of shapes {sorted(map(str, shapes))}"
        fix = "make a file for each model"
        raise mismatch(str(path), found=found, expected="integers [tokens, layers, k] of one model", fix=fix)
    ids = np.concatenate(blocks).astype(np.int64).transpose(1, 0, 2)
    layers = np.flatnonzero(_is_routed(ids))
    if not len(layers):
        fix = "record while requests are answered"
        raise mismatch(str(path), found="no token", expected="answers to requests", fix=fix)
    return ids[layers], layers.astype(np.int32)


def _is_routed(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """ids: [layers, tokens, k] -> [layers] whether at least half of a layer's rows are routings."""
    given = np.any(ids >= 0, axis=2)
    routings = given & ~name_twice(ids)
    found: NDArray[np.bool_] = given.any(axis=1) & (2 * routings.sum(axis=1) >= given.sum(axis=1))
    return found


def _parts(text: str) -> list[tuple[int, str]]:
    """Every JSON text with its line: one a line, or one over all lines."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [(1, text)] if len(lines) > 1 and lines[0][1].strip() in ("{", "[") else lines


def _payloads(answer: Any) -> Iterator[tuple[Any, Any]]:
    """What an answer has of routing, and its shape where that stands beside it."""
    extension = answer.get("nvext") or {}
    holders = [answer, answer.get("meta_info"), answer.get("sglext"), extension, extension.get("engine_data")]
    if not any(name in answer for name in ("choices", "meta_info", "nvext", "sglext", "routed_experts")):
        raise KeyError("choices")
    for holder in (*(one for one in holders if one), *answer.get("choices", [])):
        given = holder.get("routed_experts")
        if given is not None:
            yield given, holder.get("routed_experts_shape")


def _decode(given: Any, shape: Any, model: Model) -> NDArray[Any]:
    kind = None
    if isinstance(given, dict):
        given, shape, kind = given["data"], given["shape"], given.get("dtype")
    try:
        data = base64.b64decode(given, validate=True)
        if data.startswith(b"\x93NUMPY"):
            return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-untyped-call]
    except (binascii.Error, TokenError, SyntaxError) as error:  # the latter two from numpy's parser of headers
        raise ValueError(error) from None
    if shape is None:
        if model is None:
            raise _NoShape
        return np.frombuffer(data, np.int32).reshape(-1, *model)
    if not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"shape {shape}")
    width, rest = divmod(len(data), math.prod(shape))
    if rest or width not in _WIDTHS:
        raise ValueError(f"{len(data)} bytes for shape {shape}")
    return np.frombuffer(data, kind or _WIDTHS[width]).reshape(shape)
