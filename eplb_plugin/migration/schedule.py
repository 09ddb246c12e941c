"""What has to move between two placements: from where, to where, in which order. Pure: no tensor, no process group.

`schedule` promises, for every layer (tests/migration/test_schedule.py holds it to this):
- a slot whose expert stays is not in the schedule at all;
- every row is read from the *old* placement into staging, and no slot is written before the whole layer is staged: so
  every source is read before it is overwritten, whatever cycles the moves form;
- a source on the same rank is preferred, then one on the same node;
- an expert that a node lacks enters it once, on one rank (the gateway), which passes it on to the node's other ranks;
- senders are balanced: no row could be sent by another rank that holds it (on the same node, if the sender is) and
  sends at least two rows fewer;
- rounds: in a round a rank exchanges rows with at most one other rank. If no rank has more than d peers, there are
  at most 2d - 1 rounds from old holders, and as many relays after them (first-fit edge colouring, as in vLLM's
  migration batching; heaviest pairs first, so that a round's transfers are of like length).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import mismatch
from ..jit import Array
from ..topology import Topology
from .routes import LOCAL, choose_rounds, choose_sources


@dataclass(frozen=True, eq=False)
class Schedule:
    """Moves in the order of their staging rows: by layer, target rank, round, source rank, expert. All arrays int32.

    A move fills one staging row of its target rank: layer, expert, source, target: [M]; round: [M] within the layer,
    LOCAL where source == target; slot: [M] slot on the source rank, -1 where the source passes on its own staging row
    `relay_row` [M] (-1 otherwise); row: [M] staging row on the target, counted from 0 in every (layer, target).
    row_of_slot: [L, P] the staging row that a slot is filled from, -1 where nothing changes.
    """

    topology: Topology
    layer: Array
    expert: Array
    source: Array
    target: Array
    round: Array
    slot: Array
    relay_row: Array
    row: Array
    row_of_slot: Array
    digest: int

    @property
    def changed_layers(self) -> list[int]:
        """Layers in which any slot changes, in order."""
        return np.flatnonzero((self.row_of_slot >= 0).any(axis=1)).tolist()

    @cached_property
    def staged_rows(self) -> NDArray[np.int64]:
        """[L, ranks] rows that each rank stages."""
        ranks = self.topology.num_ranks
        index = self.layer.astype(np.int64) * ranks + self.target
        return np.bincount(index, minlength=len(self.row_of_slot) * ranks).reshape(-1, ranks)

    def rank_traffic(self, expert_bytes: ArrayLike) -> NDArray[np.int64]:
        """[ranks, ranks] bytes from row to column; the diagonal is copied inside a rank.

        expert_bytes: [L] or a scalar, bytes of one expert of a layer.
        """
        ranks = self.topology.num_ranks
        weight = np.broadcast_to(np.asarray(expert_bytes, np.float64), len(self.row_of_slot))[self.layer]
        index = self.source.astype(np.int64) * ranks + self.target
        return np.bincount(index, weight, ranks * ranks).reshape(ranks, ranks).astype(np.int64)

    def node_traffic(self, expert_bytes: ArrayLike) -> NDArray[np.int64]:
        """[nodes, nodes] bytes from row to column; the diagonal stays inside a node or a rank."""
        node = np.eye(self.topology.num_nodes, dtype=np.int64)[self.topology.node_of_rank]
        return node.T @ self.rank_traffic(expert_bytes) @ node


def schedule(old: ArrayLike, new: ArrayLike, topology: Topology) -> Schedule:
    """old, new: [L, P] logical expert of every slot. Deterministic: equal on all ranks.

    Raises PluginError if the shapes do not fit, an id is out of range, or an expert has no source.
    """
    before, after = (_checked(name, one, topology) for name, one in (("old", old), ("new", new)))
    if before.shape != after.shape:
        raise mismatch("new phy2log", found=after.shape, expected=before.shape, fix="plan for this model")
    layers, experts = len(before), int(max(before.max(initial=0), after.max(initial=0))) + 1
    _refuse_lost(before, after, experts)
    node_of_rank = topology.node_of_rank
    moves, move_of_slot = choose_sources(before, after, experts, node_of_rank, topology.slots_per_rank)
    rounds = choose_rounds(moves, layers, topology.num_ranks)
    layer, expert, source, target, slot, relay_of = moves.T
    order = _order(topology.num_ranks, experts, layer, target, rounds, source, expert)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    group = layer.astype(np.int64) * topology.num_ranks + target
    begins = np.zeros(layers * topology.num_ranks + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=len(begins) - 1), out=begins[1:])
    row = (place - begins[group]).astype(np.int32)
    relay_row = np.where(relay_of >= 0, row[relay_of], -1).astype(np.int32) if len(row) else row
    row_of_slot = np.where(move_of_slot >= 0, row[move_of_slot], -1).astype(np.int32) if len(row) else move_of_slot
    digest = hashlib.sha256(repr(topology).encode() + node_of_rank.tobytes() + before.tobytes() + after.tobytes())
    return Schedule(
        topology=topology,
        layer=layer[order],
        expert=expert[order],
        source=source[order],
        target=target[order],
        round=rounds[order],
        slot=slot[order],
        relay_row=relay_row[order],
        row=row[order],
        row_of_slot=row_of_slot,
        digest=int.from_bytes(digest.digest()[:7], "big"),
    )


def _order(ranks: int, experts: int, layer: Array, target: Array, rounds: Array, source: Array, expert: Array) -> Array:
    """Order of the moves by these columns, as one number each: a sort by one key is the fastest there is."""
    key = layer.astype(np.int64)
    for column, size in ((target, ranks), (rounds - LOCAL, 4 * ranks), (source, ranks), (expert, experts)):
        key = key * size + column
    return np.argsort(key)


def _checked(name: str, phy2log: ArrayLike, topology: Topology) -> NDArray[np.int32]:
    found = np.asarray(phy2log)
    if found.ndim != 2 or found.shape[1] != topology.num_slots or found.dtype.kind not in "iu":
        raise mismatch(
            f"{name} phy2log",
            found=f"shape {found.shape} {found.dtype}",
            expected=f"integers [layers, {topology.num_slots}]",
            fix="pass one logical id per slot of the EP group",
        )
    if found.size and (found.min() < 0 or found.max() >= found.shape[1]):
        raise mismatch(
            f"{name} phy2log",
            found=f"ids {found.min()} to {found.max()}",
            expected=f"0 to {found.shape[1] - 1}: at least a slot per expert",
            fix="pass logical ids",
        )
    return np.ascontiguousarray(found, np.int32)


def _refuse_lost(old: NDArray[np.int32], new: NDArray[np.int32], experts: int) -> None:
    held = np.zeros((2, len(old), experts), bool)
    for which, placed in enumerate((old, new)):
        held[which, np.arange(len(old))[:, None], placed] = True
    lost = np.argwhere(held[0] != held[1])
    if len(lost):
        layer, expert = lost[0]
        raise mismatch(
            f"placement of layer {layer}",
            found=f"logical expert {expert} in only one of the two placements",
            expected="the same experts before and after",
            fix="plan both for the same model",
        )
