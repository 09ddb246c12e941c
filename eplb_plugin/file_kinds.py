"""What a file is, told by its first bytes: one table, so that a refusal says what it got and where that belongs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

HEAD = 1 << 20  # bytes that are looked at
LONGEST_LINE = 1 << 16  # of a table that is looked at
Test = Callable[[bytes], bool]


class Kind(NamedTuple):
    """name: for the code. what, belongs: for a message, what it is and where it is of use. test: of the first bytes."""

    name: str
    what: str
    belongs: str
    test: Test


def _pattern(text: bytes) -> Test:
    compiled = re.compile(text, re.DOTALL | re.MULTILINE)
    return lambda head: compiled.search(head) is not None


def _json(*keys: str) -> Test:
    """An object, or a list or lines of objects, with one of the keys at any depth."""
    named = _pattern(rb'"(%b)"\s*:' % "|".join(keys).encode())
    return lambda head: head.lstrip()[:1] in (b"{", b"[") and named(head)


def _is_table(head: bytes) -> bool:
    """Numbers apart by commas, semicolons or tabs, below at most one line of names."""
    number = re.compile(rb'\s*"?[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"?\s*\Z')
    lines = [line[:LONGEST_LINE] for line in head.split(b"\n", 2)[:2]]
    cells = [re.split(rb"[,;\t]", line) for line in lines if line.strip()]
    if not cells or len(cells[0]) < 2 or b"{" in lines[0]:
        return False
    return all(number.match(cell) for cell in cells[-1][1:-1]) and bool(number.match(cells[-1][0] or cells[-1][1]))


_SAFETENSORS = rb'\A.{6}\0\0\{"'
_OURS = _SAFETENSORS + rb'__metadata__":\{"eplb_plugin":"\{.*?\\"kind\\": \\"%b\\"'
_TORCH = rb"\APK\x03\x04.{26}[^/\0]{1,200}/data\.pkl.*"
_AS_TRACE, _AS_PLACEMENT = "pass it as a trace", "pass it as --previous of `plan` or --placement of `replay`"
_FOR_RECORD = "`eplb-plugin record window.safetensors --dump FILE` makes a trace of it"

KINDS = (  # the first that fits
    Kind("statistics", "a statistics file", _AS_TRACE, _pattern(_OURS % b"statistics")),
    Kind("placement", "a placement file", _AS_PLACEMENT, _pattern(_OURS % b"placement")),
    Kind("tensors", "tensors of another program", "see docs/tools.md for what is read", _pattern(_SAFETENSORS)),
    Kind("npz", "an .npz of arrays", _AS_TRACE, _pattern(rb"\APK\x03\x04.{26}[^/\0]{1,200}?\.npy")),
    Kind("torch-map", "SGLang's map of experts", _AS_PLACEMENT, _pattern(_TORCH + rb"\0physical_to_logical_map")),
    Kind(
        "torch-recording", "a recording of SGLang", _FOR_RECORD,
        _pattern(_TORCH + rb"(logical_count|last_physical_to_logical_map)"),
    ),
    Kind("torch", "a file of torch", "see docs/tools.md for what is read", _pattern(_TORCH)),
    Kind("npy", "an .npy array", _AS_TRACE, _pattern(rb"\A\x93NUMPY")),
    Kind(
        "benchmark", "the results of a serving benchmark", "pass it to `eplb-plugin compare`",
        _json("request_throughput"),
    ),
    Kind(
        "model-config", "a model's config.json", "pass it as --model-config",
        _json("architectures", "num_hidden_layers"),
    ),
    Kind("vllm-ascend", "vllm-ascend's map of experts", _AS_PLACEMENT, _json("device_expert", "moe_layer_count")),
    Kind("sglang", "SGLang's map of experts", _AS_PLACEMENT, _json("physical_to_logical_map")),
    Kind("counts", "SGLang's counts of selections", _AS_TRACE, _json("logical_count")),
    Kind("loads", "a published load file", _AS_TRACE, _json("heat")),
    Kind("answers", "a server's answers", _AS_TRACE, _json("choices", "meta_info", "nvext", "routed_experts")),
    Kind(
        "tensorrt-llm", "TensorRT-LLM's settings of its load balancer", _AS_PLACEMENT,
        _pattern(rb"^\s*initial_global_assignments\s*:"),
    ),
    Kind(
        "settings", "a settings file of the plugin", "pass it as --eplb-plugin-config of a server",
        _pattern(rb"\A(\s*(#[^\n]*)?\n)*(eplb_plugin|policy|topology|dispatch|budget|state_directory)\s*:"),
    ),
    Kind("table", "a table of numbers", _AS_TRACE, _is_table),
)  # fmt: skip


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """None: of no kind that is known, or it cannot be read at all."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return None
    return next((kind for kind in KINDS if kind.test(head)), None)
