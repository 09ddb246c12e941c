"""What `exact` reads of a placement on one rank's device: at addresses that stay, in shapes that no placement changes.

Of P slots and E experts at most P - E experts have replicas, with 2 · (P - E) of them together: so long are the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from ...errors import mismatch
from ...jit import Array
from ...plan_types import Plan
from ..kernels import upload
from .replicas import MOST_REPLICAS, Replicas, replicas_of
from .step import fine_tolerance
from .wishes import masks_of

Part = TypeVar("Part")
PARTS = 128  # of a batch, at most: as many programs count and map at once on a GPU


class ExactMaps(NamedTuple, Generic[Part]):
    """Of layers [L, …], or of one: arrays that `exact_maps` makes, or tensors.

    nodes: [E] int64, see `wishes.masks_of`; all others are int32 and, but for `sizes`, as in `Replicas`, filled up to
    the length that they may come to have. sizes: [3] experts that have replicas, replicas, colours.
    """

    nodes: Part
    row_of: Part
    only_slot: Part
    sizes: Part
    expert: Part
    colour_start: Part
    start: Part
    slot: Part
    rank: Part
    node: Part


class Work(NamedTuple):
    """Where kernels leave numbers for each other, int32; layers use it in turn.

    mine: [payload]; parts: [PARTS, payload], the same by parts of a batch; sums, earlier: [payload], of all sources and
    of those before this one; total: [most experts] of all sources, whatever the wish; load: [ranks]; quota: [S]; row:
    [S, nodes + 1].
    """

    mine: torch.Tensor
    parts: torch.Tensor
    sums: torch.Tensor
    earlier: torch.Tensor
    total: torch.Tensor
    load: torch.Tensor
    quota: torch.Tensor
    row: torch.Tensor


class ExactLayer(NamedTuple):
    """What one layer's choice reads.

    maps: tensors; node_of_rank, source_of_rank: [ranks] int32; source: this rank's among the rows that are gathered;
    held, rank, num_nodes, covers: how it wishes, see `wishes.Wisher`; most: replicas of an expert that there may be;
    tolerance: in parts of `quotas.FINEST`.
    """

    maps: ExactMaps[torch.Tensor]
    node_of_rank: torch.Tensor
    source_of_rank: torch.Tensor
    work: Work
    source: int
    held: int
    rank: int
    num_nodes: int
    covers: bool
    slots_per_rank: int
    most: int
    tolerance: int


class ExactTables:
    """The tables of all layers of a model; only ever filled again.

    owners: the ranks that route the same tokens as this one; all others are in groups like it. They are one source, and
    nothing but `source` differs between ranks.
    sources: how many rows of counts are gathered; payload: their length: [most experts, nodes + 1] selections by expert
    and wish, then [ranks] those of experts that lie on one rank.
    """

    def __init__(self, plan: Plan, owners: Sequence[int], device: torch.device, tolerance: float) -> None:
        topology, placement = plan.topology, plan.placement
        owners, ranks, wishes = sorted(owners), topology.num_ranks, topology.num_nodes + 1
        size, first = len(owners), owners[0]
        if owners != list(range(first, first + size)) or first % size or ranks % size:
            expected = f"ranks n·i … n·(i + 1) - 1, where n divides {ranks}, for exact"
            raise mismatch("ranks that route the same tokens", found=owners, expected=expected, fix="exact: null")
        experts, replicas = _most(plan)
        self.sources, self.payload = ranks // size, experts * wishes + ranks

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        made = exact_maps(plan, range(placement.num_layers))
        self._maps = ExactMaps(*(torch.from_numpy(part).to(device, copy=True) for part in made))
        self._work = Work(
            zeros(self.payload), zeros(PARTS, self.payload), zeros(self.payload), zeros(self.payload),
            zeros(experts), zeros(ranks), zeros(replicas), zeros(replicas, wishes),
        )  # fmt: skip
        self._layer = ExactLayer(
            self._maps,
            torch.from_numpy(topology.node_of_rank).to(device),
            torch.arange(ranks, dtype=torch.int32).div(size, rounding_mode="floor").to(device),
            self._work,
            source=first // size,
            held=sum(1 << node for node in set(topology.node_of_rank[owners].tolist())),
            rank=first,
            num_nodes=topology.num_nodes,
            covers=plan.dispatch == "cover",
            slots_per_rank=topology.slots_per_rank,
            most=min(MOST_REPLICAS, ranks, placement.num_slots - placement.num_experts + 1),
            tolerance=fine_tolerance(tolerance),
        )

    def put(self, maps: ExactMaps[Array], layers: Sequence[int]) -> None:
        """From now on these layers' tokens go where `maps`, made for them, says. Does not wait for the device."""
        for part, held in zip(maps, self._maps, strict=True):
            upload(torch.from_numpy(part), held, layers)

    def layer(self, index: int) -> ExactLayer:
        return self._layer._replace(maps=ExactMaps(*(part[index] for part in self._maps)))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What ranks of one placement have equal; work is not."""
        return (*self._maps, self._layer.node_of_rank, self._layer.source_of_rank)

    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.tensors(), *self._work))


def exact_maps(plan: Plan, layers: Sequence[int]) -> ExactMaps[Array]:
    """The maps of some layers of a plan: the slow part of a switch, without a device.

    Raises PluginError where a placement is beyond what `exact` can handle.
    """
    experts, replicas = _most(plan)
    lengths = *[plan.placement.num_experts] * 3, 3, experts, *[experts + 1] * 2, *[replicas] * 3
    maps = ExactMaps(*(np.zeros((len(layers), length), np.int32) for length in lengths))
    maps = maps._replace(nodes=maps.nodes.astype(np.int64))
    for row, layer in enumerate(layers):
        found = replicas_of(plan.placement.phy2log[layer], plan.topology)
        maps.nodes[row] = masks_of(found)
        maps.sizes[row] = len(found.expert), len(found.slot), found.colours
        for name in ("row_of", "only_slot", "expert", "colour_start", "start", "slot", "rank", "node"):
            part, filled = getattr(found, name), getattr(maps, name)[row]
            filled[: len(part)] = part
    return maps


def _most(plan: Plan) -> tuple[int, int]:
    """How many experts can have replicas on several ranks, and how many replicas these can have together."""
    spare = plan.placement.num_slots - plan.placement.num_experts
    return max(min(spare, plan.placement.num_experts), 1), max(min(2 * spare, plan.placement.num_slots), 1)


def replicas_in(layer: ExactLayer) -> Replicas:
    """What `replicas_of` made, from the tables, on a CPU."""
    maps = ExactMaps(*(part.numpy() for part in layer.maps))
    experts, replicas, colours = maps.sizes.tolist()
    return Replicas(
        maps.expert[:experts],
        maps.colour_start[: colours + 1],
        maps.start[: experts + 1],
        maps.slot[:replicas],
        maps.rank[:replicas],
        maps.node[:replicas],
        maps.row_of,
        maps.only_slot,
        layer.node_of_rank.numpy(),
        layer.slots_per_rank,
    )
