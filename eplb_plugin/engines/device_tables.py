"""The tables that one rank's tokens are sent by, on the device: filled again in place, at addresses that stay.

A forward pass looks entry `hash % count` of an expert's row up, also inside a captured graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist

from ..dispatch.buffers import LayerTables
from ..dispatch.cover import cover_maps
from ..dispatch.exact.tables import ExactTables, exact_maps
from ..dispatch.kernels import CoverTables, upload
from ..dispatch.tables import TABLE_WIDTH, hashed_maps
from ..errors import mismatch
from ..plan_types import Plan


class DispatchTables:
    """Of one model. owners: the ranks that route the same tokens as this one.

    rows: [L, E, entries] int32 slots; counts: [L, E] int64 entries in use; cover: the tables of that rule, where it is
    in force (the rows then say what a look-up by hash would find, in code that knows no other); exact: what steps of
    `exact` read, where it is on: of where experts lie, not of their shares.
    tolerance: that of `exact`; None: it is off.
    """

    def __init__(self, plan: Plan, owners: Sequence[int], device: torch.device, tolerance: float | None = None) -> None:
        self.owners = list(owners)
        layers, experts = plan.placement.num_layers, plan.placement.num_experts
        width = TABLE_WIDTH if plan.dispatch == "weighted" else plan.placement.num_slots - experts + 1
        self.rows = torch.full((layers, experts, width), -1, dtype=torch.int32, device=device)
        self.counts = torch.ones((layers, experts), dtype=torch.int64, device=device)
        self.cover: CoverTables | None = None
        self._made(plan, range(layers))()
        if plan.dispatch == "cover":
            self.cover = CoverTables(plan, owners, device)  # is made full
        self.exact = None if tolerance is None else ExactTables(plan, owners, device, tolerance)
        self._placed = plan.placement.phy2log.copy()

    def layer(self, index: int) -> torch.Tensor | LayerTables:
        """What maps one layer's ids: rows [E, entries], or the tables of `cover`."""
        return self.rows[index] if self.cover is None else self.cover.layer(index)

    def nbytes(self) -> int:
        others = sum(tables.nbytes() for tables in (self.cover, self.exact) if tables)
        return int(self.rows.nbytes + self.counts.nbytes) + others

    @torch.inference_mode()
    def switch(self, layers: Sequence[int], plan: Plan) -> None:
        """The experts of these layers lie as in `plan`; from now on tokens are sent there by it."""
        self._made(plan, layers)()
        placed = plan.placement.phy2log
        moved = [layer for layer in layers if not np.array_equal(placed[layer], self._placed[layer])]
        if self.exact and moved:  # a layer takes .7 ms, and most may stay at the end of a migration
            self.exact.put(exact_maps(plan, moved), moved)
            self._placed[moved] = placed[moved]

    def stage(self, plan: Plan) -> Callable[[], None]:
        """Make the rows of a plan for the placement that is in force; what is returned puts them in force."""
        return self._made(plan, range(len(self.rows)))

    def digest(self) -> int:
        """Equal on two ranks only if they send tokens by equal tables."""
        return _digest([self.rows, self.counts, *(self.cover.tensors() if self.cover else [])])

    def exact_digest(self) -> int:
        """Equal on two ranks only if they even a step out alike."""
        return _digest(self.exact.tensors() if self.exact else [])

    def _made(self, plan: Plan, layers: Sequence[int]) -> Callable[[], None]:
        rows, counts = hashed_maps(plan, self.owners, list(layers))
        cover = cover_maps(plan, layers) if self.cover else None

        @torch.inference_mode()
        def fill() -> None:
            upload(torch.from_numpy(rows), self.rows[:, :, : rows.shape[2]], layers)
            upload(torch.from_numpy(counts), self.counts, layers)
            if self.cover and cover:
                self.cover.put(cover, layers)

        return fill


def _digest(parts: Iterable[torch.Tensor]) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).digest()[:7], "big")


def owners_of(rank: int, group_size: int) -> range:
    """The token-owner group of a rank, where `group_size` consecutive ranks route the same token."""
    first = rank - rank % group_size
    return range(first, first + group_size)


def refuse_unequal(tables: DispatchTables, group: dist.ProcessGroup) -> None:
    """Collective over the EP group's CPU group, at start: ranks that route the same token must send it alike.

    Raises PluginError, on every rank, if two ranks of a token-owner group hold different tables, or do not agree on who
    belongs to it: a copy of an expert would then be computed twice or by nobody, without a word. Under `exact`, also if
    any two ranks would even a step out differently.
    """
    told: list[tuple[list[int], int, int]] = [([], 0, 0)] * dist.get_world_size(group)
    dist.all_gather_object(told, (tables.owners, tables.digest(), tables.exact_digest()), group=group)
    fix = "report the model and its parallel layout; use the engine's own EPLB until then"
    for rank, (owners, digest, exact) in enumerate(told):
        for other in owners:
            if rank not in owners or told[other][:2] != (owners, digest):
                raise mismatch(
                    f"token-owner group {owners}",
                    found=f"other tables on rank {other} than on rank {rank}",
                    expected="equal tables on ranks that route the same tokens",
                    fix=fix,
                )
        if exact != told[0][2]:
            found = f"other tables on rank {rank} than on rank 0"
            raise mismatch("exact", found=found, expected="equal tables on all ranks", fix=fix)
