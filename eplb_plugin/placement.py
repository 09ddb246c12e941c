"""Which logical expert every physical slot holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .counts import checked_layer_ids
from .errors import PluginError, mismatch
from .files import load_arrays, save_arrays, write_atomic
from .placement_formats import ExpertMap, encode

KIND = "placement"


@dataclass(frozen=True, eq=False)
class Placement:
    """phy2log: [L, P] int32 logical expert of every physical slot; layer_ids: [L] int32 decoder-layer numbers.

    Every layer has the same logical experts 0 … E-1 and places each at least once; otherwise PluginError.
    """

    phy2log: NDArray[np.int32]
    layer_ids: NDArray[np.int32] = None  # type: ignore[assignment]  # always an array once made

    def __post_init__(self) -> None:
        slots = np.asarray(self.phy2log)
        if slots.ndim != 2 or slots.size == 0 or slots.dtype.kind not in "iu" or slots.min() < 0:
            raise mismatch(
                "phy2log",
                found=f"shape {slots.shape} {slots.dtype}",
                expected="logical ids >= 0, [layers, slots]",
                fix="pass one id per slot",
            )
        object.__setattr__(self, "phy2log", slots.astype(np.int32))
        object.__setattr__(self, "layer_ids", checked_layer_ids(self.layer_ids, len(slots)))
        if slots.max() >= slots.shape[1]:  # too few slots for so many experts; counting replicas could need any memory
            missing = np.array([[0, np.setdiff1d(np.arange(slots.shape[1] + 1), slots[0])[0]]])
        else:
            missing = np.argwhere(self.replica_count == 0)
        if len(missing):
            layer, expert = missing[0]
            raise mismatch(
                f"placement of layer {layer}",
                found=f"logical expert {expert} in no slot",
                expected="every expert at least once",
                fix=f"give every expert a slot in layer {layer}",
            )

    @property
    def num_layers(self) -> int:
        return int(self.phy2log.shape[0])

    @property
    def num_slots(self) -> int:
        return int(self.phy2log.shape[1])

    @property
    def num_experts(self) -> int:
        return int(self.phy2log.max()) + 1

    @cached_property
    def replica_count(self) -> NDArray[np.int32]:
        """[L, E] int32 slots that hold every logical expert."""
        experts, layers = self.num_experts, self.num_layers
        flat = self.phy2log + np.arange(layers, dtype=np.int64)[:, None] * experts
        return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts).astype(np.int32)

    @cached_property
    def replica_index(self) -> NDArray[np.int32]:
        """[L, P] int32: index of the slot among its expert's replicas, in slot order from 0."""
        order = np.argsort(self.phy2log, axis=1, kind="stable")
        first = np.cumsum(self.replica_count, axis=1) - self.replica_count
        running = np.arange(self.num_slots) - np.take_along_axis(
            first, np.take_along_axis(self.phy2log, order, 1).astype(np.int64), 1
        )
        index = np.empty_like(self.phy2log)
        np.put_along_axis(index, order, running.astype(np.int32), axis=1)
        return index

    @cached_property
    def log2phy(self) -> NDArray[np.int32]:
        """[L, E, most replicas] int32: the slots of every logical expert in slot order, padded with -1."""
        table = np.full((self.num_layers, self.num_experts, int(self.replica_count.max())), -1, np.int32)
        layer, slot = np.indices(self.phy2log.shape)
        table[layer, self.phy2log, self.replica_index] = slot
        return table

    def moves_from(self, previous: Placement) -> NDArray[np.bool_]:
        """[L, P] bool: slots whose expert differs from `previous`, which must have the same layers and slots."""
        if self.phy2log.shape != previous.phy2log.shape or not np.array_equal(self.layer_ids, previous.layer_ids):
            raise mismatch(
                "previous placement",
                found=f"layers × slots {previous.phy2log.shape}",
                expected=f"{self.phy2log.shape} with equal layer_ids",
                fix="compare placements of one model and EP group",
            )
        return self.phy2log != previous.phy2log

    def save(self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None) -> None:
        """Write a safetensors file atomically; `header` adds model, engine … for the reader."""
        save_arrays(path, KIND, {"phy2log": self.phy2log, "layer_ids": self.layer_ids}, header or {})

    def export(
        self, format: str, path: str | os.PathLike[str], num_layers: int | None = None, num_ranks: int | None = None
    ) -> None:
        """Write the file that another program starts from: "sglang", "vllm-ascend" or "tensorrt-llm".

        num_layers: decoder layers of the model, dense ones included, which SGLang counts; default: up to the last MoE
        layer. num_ranks: of the EP group, which vllm-ascend's file names. Raises PluginError, before anything is
        written, for another format, a name that the program would not read, or what its file cannot say.
        """
        write_atomic(path, encode(format, ExpertMap(self.phy2log, self.layer_ids, num_ranks, num_layers), path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], expected: Mapping[str, Any] | None = None) -> Placement:
        """Read what `save` wrote. Raises PluginError on any other file.

        expected: entries of the header, such as model or num_ranks, that the file must not contradict; one that it
        does not have is not checked.
        """
        placement, header = load_placement(path)
        for name, value in (expected or {}).items():
            if name in header and header[name] != value:
                fix = "pass the placement that was made for this one"
                raise mismatch(f"{path}: {name}", found=header[name], expected=value, fix=fix)
        return placement


def load_placement(path: str | os.PathLike[str]) -> tuple[Placement, dict[str, Any]]:
    """What `Placement.save` wrote, and the file's header. Raises PluginError on any other file."""
    arrays, header = load_arrays(path, KIND)
    if "phy2log" not in arrays:
        raise PluginError(f"{path}: a placement file without phy2log; fix: save it with Placement.save")
    try:
        return Placement(arrays["phy2log"], arrays.get("layer_ids")), header  # type: ignore[arg-type]  # None: 0 … L-1
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None


def linear_placement(layers: int, experts: int, slots: int, layer_ids: ArrayLike | None = None) -> Placement:
    """The engines' own start: slot p holds expert p, and the redundant slots repeat from expert 0."""
    if slots < experts:
        fix = f"pass {experts} slots or more"
        raise mismatch("slots", found=slots, expected=f"at least {experts}, one per expert", fix=fix)
    rows = np.tile(np.arange(slots, dtype=np.int32) % experts, (layers, 1))
    return Placement(rows, checked_layer_ids(layer_ids, layers))
