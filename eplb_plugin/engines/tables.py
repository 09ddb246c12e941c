"""The tables that one rank's tokens are sent by, on the device: filled again in place, at addresses that stay.

A forward pass looks entry `hash % count` of an expert's row up, also inside a captured graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..dispatch.tables import TABLE_WIDTH, hashed_maps
from ..errors import mismatch
from ..plan_types import Plan
from ..planning.job import plan_of


class DispatchTables:
    """Of one model.

    owners: the ranks that route the same tokens as this one. plan: the one whose rows are committed next; a row that is
    not its placement's, left behind by a cycle that was broken off, is used evenly.
    rows: [L, E, entries] int32 slots; counts: [L, E] int64 entries in use; placed: [L, P] int32 what lies where.
    """

    def __init__(self, plan: Plan, owners: Sequence[int], device: torch.device) -> None:
        self.plan, self.owners = plan, list(owners)
        self.placed = plan.placement.phy2log.copy()
        layers, experts = plan.placement.num_layers, plan.placement.num_experts
        self.width = TABLE_WIDTH if plan.dispatch == "weighted" else plan.placement.num_slots - experts + 1
        self.rows = torch.full((layers, experts, self.width), -1, dtype=torch.int32, device=device)
        self.counts = torch.ones((layers, experts), dtype=torch.int64, device=device)
        self._fill(range(layers), *self._made(range(layers)))

    def nbytes(self) -> int:
        return int(self.rows.nbytes + self.counts.nbytes)

    def refill(self, phy2log: NDArray[Any], layers: Sequence[int]) -> None:
        """phy2log: [layers, P]; from now on the experts of these consecutive layers lie so."""
        self.placed[layers[0] : layers[-1] + 1] = phy2log
        self._fill(layers, *self._made(layers))

    def stage(self, plan: Plan) -> Callable[[], None]:
        """Make the rows of a plan for the placement that is in force; what is returned puts them in force."""
        layers = range(len(self.placed))
        rows, counts = hashed_maps(plan, self.owners)

        def switch() -> None:
            self.plan = plan
            self._fill(layers, rows, counts)

        return switch

    def digest(self) -> int:
        """Equal on two ranks only if they send tokens by equal tables."""
        parts = [part.long().cpu().reshape(-1) for part in (self.rows, self.counts)]
        place = torch.cat(parts)
        return int(((place + 2) * (torch.arange(len(place)) * 2654435769 % 1000003 + 1)).sum())

    def _made(self, layers: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        plan, placement = self.plan, self.plan.placement
        if not np.array_equal(placement.phy2log[list(layers)], self.placed[list(layers)]):
            plan = plan_of(replace(placement, phy2log=self.placed.copy()), plan.topology, plan.dispatch)
        return hashed_maps(plan, self.owners, list(layers))

    def _fill(self, layers: Sequence[int], rows: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        first, last = layers[0], layers[-1] + 1
        upload(torch.from_numpy(rows), self.rows[first:last, :, : rows.shape[2]])
        upload(torch.from_numpy(counts), self.counts[first:last])


def upload(source: torch.Tensor, target: torch.Tensor) -> None:
    """Without waiting for the device, where the host's memory can be pinned."""
    pin = target.is_cuda
    target.copy_(source.pin_memory() if pin else source, non_blocking=pin)


def refuse_unequal(tables: DispatchTables, group: dist.ProcessGroup) -> None:
    """Collective over the EP group's CPU group, at start: ranks that route the same token must send it alike.

    Raises PluginError, on every rank, if two ranks of a token-owner group hold different tables, or do not agree on who
    belongs to it: a copy of an expert would then be computed twice or by nobody, without a word.
    """
    told: list[tuple[list[int], int]] = [([], 0)] * dist.get_world_size(group)
    dist.all_gather_object(told, (tables.owners, tables.digest()), group=group)
    for rank, (owners, digest) in enumerate(told):
        for other in owners:
            if rank not in owners or told[other] != (owners, digest):
                raise mismatch(
                    f"token-owner group {owners}",
                    found=f"other tables on rank {other} than on rank {rank}",
                    expected="equal tables on ranks that route the same tokens",
                    fix="report the model and its parallel layout; use the engine's own EPLB until then",
                )
