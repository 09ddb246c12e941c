"""Logical maps on the device, at fixed addresses and no wider than they can ever have to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike

from ..placement import Placement


class LogicalMaps:
    """log2phy: [L, E, W] int32, the slots of every expert in slot order, -1 beyond; replica_count: [L, E] int32.

    W = P - E + 1: more copies an expert cannot have while every other has one.
    """

    def __init__(self, placed: Placement, device: torch.device | str = "cpu") -> None:
        layers, experts = placed.num_layers, placed.num_experts
        width = placed.num_slots - experts + 1
        self.log2phy = torch.empty(layers, experts, width, dtype=torch.int32, device=device)
        self.replica_count = torch.empty(layers, experts, dtype=torch.int32, device=device)
        self.switch(range(layers), placed.phy2log)

    @property
    def nbytes(self) -> int:
        return 4 * (self.log2phy.numel() + self.replica_count.numel())

    def switch(self, layers: Sequence[int], phy2log: ArrayLike) -> None:
        """Put rows phy2log [n, P] in force for these n layers, in place: fits `Shuffler(switch=…)`.

        Raises PluginError, before anything is written, if a row misplaces an expert.
        """
        placed = Placement(phy2log)  # type: ignore[arg-type]  # made an array there
        table = torch.from_numpy(placed.log2phy)
        wide = torch.full((len(table), *self.log2phy.shape[1:]), -1, dtype=torch.int32)
        wide[:, :, : table.shape[2]] = table
        index = torch.as_tensor(layers, dtype=torch.int64)
        self.log2phy[index] = wide.to(self.log2phy.device)
        self.replica_count[index] = torch.from_numpy(placed.replica_count).to(self.log2phy.device)
