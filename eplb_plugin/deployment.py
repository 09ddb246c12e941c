"""What a placement or a window was made for: the model, and how it is laid out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import mismatch
from .topology import Topology

Phase = Literal["prefill", "decode", "mixed"]  # the role of a server, fixed at its start


@dataclass(frozen=True)
class Deployment:
    """layer_ids: decoder-layer numbers of the MoE layers; None: not known before the model is loaded."""

    model: str
    engine: str
    phase: Phase
    topology: Topology
    num_experts: int
    layer_ids: tuple[int, ...] | None

    @property
    def stem(self) -> str:
        """What its files are called: the last part of the model's path, and the phase."""
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', base_name(self.model)).strip('-.') or 'model'}.{self.phase}"

    def header(self) -> dict[str, Any]:
        """For the files of a window."""
        layers = {} if self.layer_ids is None else {"num_layers": len(self.layer_ids)}
        return {
            "model": self.model, "engine": self.engine, "phase": self.phase, "num_experts": self.num_experts, **layers
        }  # fmt: skip

    def placement_header(self) -> dict[str, Any]:
        topology = self.topology
        return {**self.header(), "num_nodes": topology.num_nodes, "num_ranks": topology.num_ranks}

    def refuse_window(
        self, path: str | os.PathLike[str], header: Mapping[str, Any], experts: int, layer_ids: NDArray[Any]
    ) -> None:
        """Raises PluginError if a file is of another model; what its header does not have is not checked."""
        found = header.get("model")
        if found is not None and base_name(str(found)) != base_name(self.model):
            raise mismatch(f"{path}: model", found=found, expected=self.model, fix="pass a file of this model")
        self._refuse(path, "experts", experts, self.num_experts)
        if self.layer_ids is not None and not np.array_equal(layer_ids, self.layer_ids):
            self._refuse(path, "layers", layer_ids.tolist(), list(self.layer_ids))

    def refuse_placement(
        self, path: str | os.PathLike[str], header: Mapping[str, Any], phy2log: NDArray[Any], layer_ids: NDArray[Any]
    ) -> None:
        """Likewise of a placement: it must also be of an EP group of this layout."""
        self.refuse_window(path, header, int(phy2log.max()) + 1, layer_ids)
        self._refuse(path, "slots", phy2log.shape[1], self.topology.num_slots)
        for name in ("num_ranks", "num_nodes"):
            self._refuse(path, name, header.get(name, getattr(self.topology, name)), getattr(self.topology, name))

    def _refuse(self, path: str | os.PathLike[str], what: str, found: object, expected: object) -> None:
        if found != expected:
            fix = "pass a file of this model and EP group"
            raise mismatch(f"{path}: {what}", found=found, expected=expected, fix=fix)


def base_name(model: str) -> str:
    """One model is kept in folders of different names above its own."""
    return model.rstrip("/").rsplit("/", 1)[-1]
