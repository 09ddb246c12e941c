"""SGLang's maps of a few layers: written in place, so that captured graphs see them, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...devices import sent
from ...placement import Placement
from ...topology import Topology
from .tables import dispatch_table


def switch_maps(
    metadata: Any,
    layer_ids: Sequence[int] | NDArray[np.int64],
    phy2log: NDArray[np.int32],
    topology: Topology,
    rank: int,
) -> None:
    """Put rows phy2log [n, P] in force for these n decoder layers of SGLang's ExpertLocationMetadata.

    SGLang's own update rewrites every map of all layers. Its logical_to_all_physical_map is as wide as there are slots;
    an expert cannot have more than P - E + 1 copies, and what is beyond is -1 from the start.
    Raises PluginError, before anything is written, if a row misplaces an expert.
    """
    placed = Placement(phy2log)
    copies = placed.log2phy
    wide = np.full((*copies.shape[:2], placed.num_slots - placed.num_experts + 1), -1, np.int64)
    wide[:, :, : copies.shape[2]] = copies
    table = metadata.logical_to_rank_dispatch_physical_map
    chosen = None if table is None else dispatch_table(copies, topology, rank, placed.num_slots)
    for row, layer in enumerate(layer_ids):
        for phy2log_map in (metadata.physical_to_logical_map, metadata.physical_to_logical_map_cpu):
            _put(phy2log_map[layer], placed.phy2log[row])
        for log2phy in (metadata.logical_to_all_physical_map, metadata.logical_to_all_physical_map_cpu):
            _put(log2phy[layer, :, : wide.shape[2]], wide[row])
        _put(metadata.logical_to_all_physical_map_num_valid[layer], placed.replica_count[row])
        if chosen is not None:
            _put(table[layer], chosen[row])


def _put(target: torch.Tensor, values: NDArray[Any]) -> None:
    """In place, and nobody waits for the device."""
    target.copy_(sent(torch.from_numpy(values), target.device))
