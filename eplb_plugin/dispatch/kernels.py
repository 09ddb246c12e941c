"""Mapping and recording of one MoE layer in one go, where the forward pass runs.

On a GPU one Triton launch (`triton_kernels.py`), on a CPU one compiled loop. Either reads the ids once, writes the
slots once, and equals `rules.route` bit for bit. Nothing waits for the device, and everything that changes from step to
step is read from tensors at fixed addresses, so a launch can be captured into a graph and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..devices import sent
from ..jit import Array, kernel
from ..plan_types import Plan
from .buffers import Counters, LayerTables
from .cover import CoverMaps, cover_maps, cover_token, mixed
from .rules import HASH_MASK, HASH_MULTIPLIER


class CoverTables:
    """The tables of all layers of a model on one rank's device; only ever filled again, so addresses stay.

    owners: the ranks that route the same tokens as this one. Nothing here differs between them: all choose alike.
    """

    def __init__(self, plan: Plan, owners: Sequence[int], device: torch.device) -> None:
        topology, owners = plan.topology, sorted(owners)
        self.source, self.num_nodes = owners[0], topology.num_nodes
        self.held = sum(1 << node for node in set(topology.node_of_rank[owners].tolist()))
        made = cover_maps(plan, range(plan.placement.num_layers))
        self._maps = tuple(torch.from_numpy(part).to(device, copy=True) for part in made)

    def put(self, maps: CoverMaps, layers: Sequence[int]) -> None:
        """From now on these layers' tokens go where `maps`, made for them, says. Does not wait for the device."""
        for part, held in zip(maps, self._maps, strict=True):
            upload(torch.from_numpy(part), held, layers)

    def layer(self, index: int) -> LayerTables:
        nodes, counts, copies = (part[index] for part in self._maps)
        return LayerTables(nodes, counts, copies, self.held, self.source, self.num_nodes)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self._maps

    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._maps)


def upload(source: torch.Tensor, target: torch.Tensor, layers: Sequence[int]) -> None:
    """Rows of `source` into these layers of `target`, without waiting for a device."""
    index, rows = (sent(part, target.device) for part in (torch.tensor(list(layers)), source))
    target.index_copy_(0, index, rows)


def launches(ids: torch.Tensor) -> bool:
    """Whether Triton maps and records these, and not a compiled loop."""
    return ids.device.type != "cpu"


def cover(ids: torch.Tensor, tables: LayerTables, counters: Counters) -> torch.Tensor:
    """Map and record. ids: [T, k] logical, -1 = none, of this rank's batch in order -> [T, k] slots, same dtype."""
    slots = torch.empty(ids.shape, dtype=ids.dtype, device=ids.device)
    if launches(ids):
        from .triton_kernels import launch

        launch(ids, slots, counters, tables=tables)
    else:
        nodes, counts, copies = (part.numpy() for part in tables[:3])
        maps = (nodes, counts, copies)
        _cover_rows(ids.numpy(), tables.held, tables.source, tables.num_nodes, maps, slots.numpy())
        count_batch(ids, counters, slots)
    return slots


def look_up(ids: torch.Tensor, rows: torch.Tensor, counters: Counters) -> torch.Tensor:
    """The same by tables of rule `weighted`: [E, entries] int32 slots."""
    slots = torch.empty(ids.shape, dtype=ids.dtype, device=ids.device)
    if launches(ids):
        from .triton_kernels import launch

        launch(ids, slots, counters, rows=rows)
    else:
        _look_up_rows(ids.numpy(), rows.numpy(), slots.numpy())
        count_batch(ids, counters, slots)
    return slots


def record(ids: torch.Tensor, counters: Counters, phy2log: torch.Tensor | None = None) -> None:
    """Record alone, where the engine maps, and counts slots, by itself. phy2log: [P] logical ids: `ids` are slots."""
    if launches(ids):
        from .triton_kernels import launch

        launch(ids, None, counters, phy2log=phy2log)
    else:
        if phy2log is not None:
            slots, ids = ids, torch.empty_like(ids)
            _expert_rows(slots.numpy(), phy2log.numpy(), ids.numpy())
        count_batch(ids, counters, None)


def count_batch(ids: torch.Tensor, counters: Counters, slots: torch.Tensor | None) -> None:
    """What is recorded of a batch on a CPU; slots: [T, k], if they are mapped here."""
    rows, load, pairs, slot_load, enabled, pairs_enabled, slots_enabled, real = (part.numpy() for part in counters[:8])
    if enabled:
        _count_rows(ids.numpy(), rows, load, pairs, pairs_enabled, real, counters.chunk)
    if slots is not None and slots_enabled:
        _count_slots(slots.numpy(), slot_load, real, counters.chunk)


@kernel
def _cover_rows(
    ids: Array, held: int, source: int, num_nodes: int, maps: tuple[Array, Array, Array], slots: Array
) -> None:
    """maps: one layer's `CoverMaps`."""
    nodes, counts, copies = maps
    row = np.empty(ids.shape[1], np.int32)
    for token in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            row[k] = ids[token, k] if 0 <= ids[token, k] < counts.shape[0] else -1
        slots[token] = cover_token(row, held, mixed(token, source), num_nodes, nodes, counts, copies)


@kernel
def _look_up_rows(ids: Array, rows: Array, slots: Array) -> None:
    for token in range(ids.shape[0]):
        entry = (token * HASH_MULTIPLIER & HASH_MASK) % rows.shape[1]
        for k in range(ids.shape[1]):
            slots[token, k] = rows[ids[token, k], entry] if 0 <= ids[token, k] < rows.shape[0] else -1


@kernel
def _expert_rows(slots: Array, phy2log: Array, ids: Array) -> None:
    for token in range(slots.shape[0]):
        for k in range(slots.shape[1]):
            ids[token, k] = phy2log[slots[token, k]] if 0 <= slots[token, k] < phy2log.shape[0] else -1


@kernel
def _count_rows(ids: Array, rows: Array, load: Array, pairs: Array, paired: Array, real: Array, chunk: int) -> None:
    experts = load.shape[0] - 2
    for token in range(min(ids.shape[0], rows.shape[0], real[()] - chunk * ids.shape[0])):
        named = _experts_named(ids[token], experts)
        load[experts] += named > 0
        load[experts + 1] += named < 0
        if paired[()]:
            rows[token] = -1
        for k in range(ids.shape[1]):
            one = ids[token, k]
            if named < 0 or not 0 <= one < experts:
                continue
            load[one] += 1
            if paired[()]:
                rows[token, k] = one
                for other in ids[token, k:]:
                    if 0 <= other < experts:
                        pairs[min(one, other) * (experts + 1) + max(one, other)] += 1


@kernel
def _experts_named(row: Array, experts: int) -> int:
    """How many experts a row names; -1 if it names one twice, and so is no routing."""
    named = 0
    for k in range(row.shape[0]):
        if 0 <= row[k] < experts:
            named += 1
            for other in row[k + 1 :]:
                if other == row[k]:
                    return -1
    return named


@kernel
def _count_slots(slots: Array, slot_load: Array, real: Array, chunk: int) -> None:
    for token in range(min(slots.shape[0], real[()] - chunk * slots.shape[0])):
        for slot in slots[token]:
            if slot >= 0:
                slot_load[slot] += 1
