"""From the placement in force to the next one: hops, batches of layers, and a digest of it all that ranks compare."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch
from ..topology import Topology
from .hops import hops, least_rows
from .layout import ExpertRows
from .limits import Budget, batches
from .migration import Batch
from .schedule import Schedule, schedule
from .transfer import Transfer
from .wires.base import Wires

logger = logging.getLogger("eplb_plugin")


@dataclass(frozen=True, eq=False)
class Way:
    """schedules: of every hop. batches: of all layers the first hop, then of those that need more the second, and so
    on. digest: equal on two ranks only if both move the same in the same order, in tensors alike.
    """

    schedules: list[Schedule]
    batches: list[Batch]
    digest: int


class Ways:
    """Made on every rank alike: all of it follows from the placements, the tensors' layout and the budget."""

    def __init__(self, layers: Sequence[ExpertRows], topology: Topology, wires: Wires, budget: Budget) -> None:
        self._topology, self._wires, self._budget = topology, wires, budget
        self._expert_bytes = [layer.expert_bytes for layer in layers]
        self._signature = hashlib.sha256(repr([[one.signature for one in layers], budget]).encode()).digest()
        slots = np.arange(topology.num_slots, dtype=np.int32)[None]
        schedule(slots, np.roll(slots, 1), topology)  # compiled here, so that no migration waits for it
        hops(slots, np.roll(slots, 1), topology.slots_per_rank, [least_rows(topology.slots_per_rank)])

    def between(self, old: NDArray[np.int32], new: NDArray[np.int32], layers: Sequence[ExpertRows], serial: int) -> Way:
        """old, new: [L, P]. layers: what is moved. serial: of the migration. Raises PluginError if they do not fit."""
        slots, sizes = self._topology.slots_per_rank, [layer.row_bytes for layer in layers]
        plans = [schedule(old, new, self._topology)]  # also the check of both
        if len(new) != len(sizes):
            raise mismatch("phy2log", found=len(new), expected=f"{len(sizes)} layers", fix="report this")
        way = [old, *hops(old, new, slots, [self._wires.half_bytes // size for size in sizes])]
        if len(way) > 2:
            plans = [schedule(before, after, self._topology) for before, after in pairwise(way)]
        made: list[Batch] = []
        for plan, placed in zip(plans, way[1:], strict=True):
            transfer = Transfer(plan, layers, self._wires, serial)
            together = batches(plan, sizes, self._budget, self._wires.half_bytes)
            made += [Batch(some, placed, transfer) for some in together]
        return Way(plans, made, self._digest(plans, serial))

    def _digest(self, plans: list[Schedule], serial: int) -> int:
        numbers = b"".join(number.to_bytes(8, "big") for number in (*(plan.digest for plan in plans), serial))
        return int.from_bytes(hashlib.sha256(self._signature + numbers).digest()[:7], "big")

    def announce(self, way: Way, serial: int) -> None:
        """One line on the first rank, if anything moves."""
        plans, sizes = way.schedules, self._expert_bytes
        if self._wires.rank == 0 and plans[0].changed_layers:
            ranks = np.sum([plan.rank_traffic(sizes) for plan in plans], axis=0)
            nodes = np.sum([plan.node_traffic(sizes) for plan in plans], axis=0)
            np.fill_diagonal(ranks, 0)
            np.fill_diagonal(nodes, 0)
            logger.info(
                "migration %d: %d of %d layers, at most %d hops each, %.1f MiB between ranks (busiest pair %.1f), "
                "%.1f MiB between nodes (busiest pair %.1f)",
                serial, len(plans[0].changed_layers), len(sizes), len(plans),
                *(part / 2**20 for part in (ranks.sum(), ranks.max(), nodes.sum(), nodes.max())),
            )  # fmt: skip
