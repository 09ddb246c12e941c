"""How commands read placements: a file of ours, or the map that another program starts from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import PluginError, mismatch
from ..file_kinds import kind_of
from ..placement import Placement
from ..placement_formats import FORMATS, read_map
from ..statistics import RoutingStatistics
from ..topology import Topology
from .options import fingerprint


class Existing(NamedTuple):
    """layers: how its rows are numbered: "named", as in files of ours; "model", by decoder layers, maybe more than are
    MoE; "order", MoE layers one after the other. understood: one line, for a file of another program.
    """

    path: Path
    placement: Placement
    layers: str = "named"
    understood: str | None = None

    def known(self) -> Placement | None:
        """Where it can tell a trace without layer numbers which they are."""
        return None if self.layers == "order" else self.placement

    def for_layers_of(self, window: RoutingStatistics) -> Placement:
        """The rows of the window's layers. Raises PluginError where it cannot be told which they are."""
        placed, ids = self.placement, window.layer_ids
        if self.layers == "named":
            return placed
        found, expected = f"{placed.num_layers} layers", f"the trace's {window.num_layers}"
        if self.layers == "order":
            if placed.num_layers != window.num_layers:
                raise mismatch(str(self.path), found=found, expected=expected, fix="pass the map of this model")
            return Placement(placed.phy2log, ids)
        bare = np.array_equal(ids, np.arange(len(ids)))  # a trace that does not say which layers it is of
        if bare and len(ids) < placed.num_layers:
            fix = "pass a trace with layer_ids: which of the map's layers are dense is not known"
            raise mismatch(str(self.path), found=found, expected=f"{expected}, numbered 0 to {len(ids) - 1}", fix=fix)
        if not np.isin(ids, placed.layer_ids).all():
            fix = "pass the map of this model"
            raise mismatch(str(self.path), found=f"layers {placed.layer_ids.tolist()}", expected=ids.tolist(), fix=fix)
        return Placement(placed.phy2log[np.searchsorted(placed.layer_ids, ids)], ids)


def read_placement(path: Path, topology: Topology) -> Existing:
    """Raises PluginError for a file that is no placement, or of an EP group of another shape."""
    kind = kind_of(path)
    if kind is None or (kind.name not in FORMATS and kind.name != "torch-map"):
        return Existing(path, Placement.load(path, fingerprint(topology)))
    if kind.name == "torch-map":
        from ..engines.sglang.dumps import read_torch_map

        given = read_torch_map(path)
    else:
        given = read_map(path, kind)
    if given.num_ranks not in (None, topology.num_ranks):
        fix = "pass the map of this EP group"
        raise mismatch(f"{path}: devices", found=given.num_ranks, expected=topology.num_ranks, fix=fix)
    try:
        placed = Placement(given.phy2log, given.layer_ids)  # type: ignore[arg-type]  # None: 0 … L-1
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None
    size = f"{placed.num_layers} layers × {placed.num_slots} slots of {placed.num_experts} experts"
    return Existing(path, placed, "order" if given.layer_ids is None else "model", f"{path}: {kind.what}, {size}")
