"""Placements in the files that other programs start from: SGLang, vllm-ascend, TensorRT-LLM.

What each documents:
SGLang 0.5.23: `--init-expert-location`, JSON with `physical_to_logical_map` [decoder layers, slots]
    (`srt/eplb/expert_location.py`, `compute_initial_expert_location_metadata`).
vllm-ascend: `expert_map_path` of its `eplb_config`, JSON with the experts of every device of every MoE layer
    (docs/source/user_guide/feature_guide/expert_parallelism_load_balancer.md; written by `vllm_ascend/eplb/adaptor`).
TensorRT-LLM: `moe_config.load_balancer`, YAML with `initial_global_assignments` by decoder layer
    (examples/wide_ep/ep_load_balancer/README.md; `MoeLoadBalancerConfig`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from .errors import PluginError, mismatch
from .file_kinds import Kind
from .files import read_foreign

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is much faster, and not in every build


class ExpertMap(NamedTuple):
    """phy2log: [L, P] logical expert of every slot. layer_ids: [L] decoder layers; None: MoE layers in their order.

    num_ranks: None = not said. num_layers: decoder layers of the model; None = up to the last MoE layer.
    """

    phy2log: NDArray[np.int32]
    layer_ids: NDArray[np.int32] | None = None
    num_ranks: int | None = None
    num_layers: int | None = None


class Format(NamedTuple):
    """endings: of the file's name. use: how the other program is given the file, with {path}."""

    endings: tuple[str, ...]
    use: str
    parse: Callable[[Any], ExpertMap]
    write: Callable[[ExpertMap], str]


def _rows(lists: Any) -> NDArray[np.int32]:
    """[layers, slots] of ids; ValueError for anything else, before it can take any memory (YAML's aliases)."""
    slots = len(lists[0])
    for row in lists:
        if len(row) != slots or not all(type(expert) is int and 0 <= expert < slots for expert in row):
            raise ValueError("not the same number of experts, 0 … slots - 1, in every layer")
    return np.array(lists, np.int32).reshape(len(lists), slots)


def _from_sglang(document: Any) -> ExpertMap:
    rows = _rows(document["physical_to_logical_map"])
    return ExpertMap(rows, np.arange(len(rows), dtype=np.int32))


def _to_sglang(given: ExpertMap) -> str:
    """Dense layers, which SGLang counts too, get the engine's own start."""
    assert given.layer_ids is not None
    needed = int(given.layer_ids[-1]) + 1
    layers = needed if given.num_layers is None else given.num_layers
    if layers < needed:
        fix = "pass the number of all decoder layers, dense ones too"
        raise mismatch("num_layers", found=layers, expected=f"at least {needed}", fix=fix)
    slots, experts = given.phy2log.shape[1], int(given.phy2log.max()) + 1
    rows = np.tile(np.arange(slots) % experts, (layers, 1))
    rows[given.layer_ids] = given.phy2log
    return json.dumps({"physical_to_logical_map": rows.tolist()})


def _from_ascend(document: Any) -> ExpertMap:
    layers = document["layer_list"]
    if document["moe_layer_count"] != len(layers):
        raise ValueError(f"moe_layer_count {document['moe_layer_count']!r} of {len(layers)} layers")
    rows = [[device["device_expert"] for device in layer["device_list"]] for layer in layers]
    if len({len(experts) for devices in rows for experts in devices}) != 1 or len({len(row) for row in rows}) != 1:
        raise ValueError("devices hold different numbers of experts")
    return ExpertMap(
        _rows([[expert for experts in devices for expert in experts] for devices in rows]), None, len(rows[0])
    )


def _to_ascend(given: ExpertMap) -> str:
    ranks, slots = given.num_ranks, given.phy2log.shape[1]
    if ranks is None or ranks < 1 or slots % ranks:
        fix = "pass the number of ranks that the placement was planned for"
        raise mismatch("num_ranks", found=ranks, expected=f"a divisor of {slots} slots", fix=fix)
    layers = []
    for number, row in enumerate(given.phy2log.reshape(len(given.phy2log), ranks, -1).tolist()):
        for rank, experts in enumerate(row):
            if len(set(experts)) < len(experts):
                fix = "plan with fewer slots per rank"
                found = f"an expert twice on rank {rank} of MoE layer {number}"
                raise mismatch("placement", found=found, expected="each once a rank, as vllm-ascend has it", fix=fix)
        devices = [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(row)]
        layers.append({"layer_id": number, "device_count": ranks, "device_list": devices})
    return json.dumps({"moe_layer_count": len(layers), "layer_list": layers})


def _from_tensorrt(document: Any) -> ExpertMap:
    if "initial_global_assignments" not in document:  # the settings of a whole server
        document = document["moe_config"]["load_balancer"]
    by_layer = {int(layer): row for layer, row in document["initial_global_assignments"].items()}
    layers = sorted(by_layer)
    rows = _rows([by_layer[layer] for layer in layers])
    if document.get("num_slots") != rows.shape[1] or layers[0] < 0 or layers[-1] >= 1 << 31:
        raise ValueError(f"num_slots {document.get('num_slots')!r} for rows of {rows.shape[1]}")
    return ExpertMap(rows, np.array(layers, np.int32))


def _to_tensorrt(given: ExpertMap) -> str:
    """layer_updates_per_iter 0: the placement stays as it is."""
    assert given.layer_ids is not None
    head = {"num_slots": given.phy2log.shape[1], "layer_updates_per_iter": 0}
    rows = dict(zip(given.layer_ids.tolist(), given.phy2log.tolist(), strict=True))
    body = yaml.safe_dump({"initial_global_assignments": rows}, default_flow_style=None, width=1 << 20)
    return yaml.safe_dump(head, sort_keys=False) + body


FORMATS = {
    "sglang": Format((".json",), "start SGLang with --init-expert-location {path}", _from_sglang, _to_sglang),
    "vllm-ascend": Format(
        (".json",), 'start vLLM with --additional-config \'{{"eplb_config": {{"expert_map_path": "{path}"}}}}\'',
        _from_ascend, _to_ascend,
    ),
    "tensorrt-llm": Format(
        (".yaml", ".yml"), "name it in TensorRT-LLM's settings: moe_config: {{load_balancer: {path}}}",
        _from_tensorrt, _to_tensorrt,
    ),
}  # fmt: skip


def encode(name: str, given: ExpertMap, path: str | os.PathLike[str]) -> bytes:
    """What goes into the file `path`. Raises PluginError for an unknown format or a name that it would not read."""
    if name not in FORMATS:
        raise mismatch("format", found=name, expected=f"one of {', '.join(FORMATS)}", fix="name one of them")
    chosen = FORMATS[name]
    if not os.fspath(path).endswith(chosen.endings):
        expected = f"a name that ends in {chosen.endings[0]}"
        raise mismatch("path", found=os.fspath(path), expected=expected, fix=f"name it FILE{chosen.endings[0]}")
    return chosen.write(given).encode()


def read_map(path: str | os.PathLike[str], kind: Kind) -> ExpertMap:
    """kind: one of FORMATS. Raises PluginError, in one line, for a file that is damaged or of another form."""
    data = read_foreign(path, kind.what)
    try:
        document = yaml.load(data, _YAML) if kind.name == "tensorrt-llm" else json.loads(data)
        return FORMATS[kind.name].parse(document)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        what = f"{path}: cannot be read as {kind.what} ({reason})"
        raise PluginError(f"{what}; fix: write it with `eplb-plugin export`") from None
