"""A move in several hops, where a rank cannot stage all of a layer at once: the placements on the way. No tensor.

`hops` promises, for every layer (tests/migration/test_hops.py holds it to this):
- every placement on the way holds every expert, so that the layer can serve by it;
- no rank refills more slots in a hop than its bound;
- a layer whose ranks all keep to their bounds takes one hop, straight to the new placement;
- a slot that has its final expert is never refilled;
- D slots that differ take at most 2 D refills, and at most ceil(D / floor(bound / 2)) hops. Both are far above what is
  usual: docs/migration.md has a table.

How: slots are given their final experts in turn, as far as their ranks have room. Where an expert loses its only slot
by this, it is given one of its own final slots in the same hop; so is the expert that stood there, and so on: a chain.
Chains that come to an end go first. Of what is left, a chain that meets full ranks is cut: its last expert goes into
the slot that the chain began from, whose final expert still stands elsewhere. So a cut costs one refill more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..jit import Array, kernel


def least_rows(slots_per_rank: int) -> int:
    """The least bound: two experts of one rank may have to change places."""
    return min(2, slots_per_rank)


def hops(
    old: NDArray[np.int32], new: NDArray[np.int32], slots_per_rank: int, bounds: Sequence[int]
) -> list[NDArray[np.int32]]:
    """old, new: [L, P] placements of the same experts; bounds: [L] slots that a rank may refill in a hop.

    -> [L, P] for each hop, the last of which is `new`; one if there is nothing to do. Deterministic.
    """
    found = [old]
    while len(found) == 1 or not np.array_equal(found[-1], new):
        after = new.copy()
        for layer in np.flatnonzero((found[-1] != new).any(axis=1)):
            after[layer] = _hop(found[-1][layer], new[layer], slots_per_rank, bounds[layer])
        found.append(after)
    return found[1:]


class _Layer(NamedTuple):
    """now, new: [P] before the hop, and at last; after: [P] after it. held: [E] slots of an expert in `after`.
    room: [ranks] slots that may still be refilled. chain: [P] its slots, in order.
    """

    now: Array
    new: Array
    after: Array
    held: Array
    room: Array
    chain: Array


@kernel
def _hop(now: Array, new: Array, slots_per_rank: int, bound: int) -> Array:
    """[P], the placement after one hop."""
    ranks = len(now) // slots_per_rank
    layer = _Layer(now, new, now.copy(), np.bincount(now), np.full(ranks, bound), np.empty(len(now), np.int64))
    starts = _order(now, new, slots_per_rank)
    for may_cut in (False, True):
        for start in starts:
            if layer.after[start] == now[start] and layer.room[start // slots_per_rank] > 0:
                _follow(layer, start, slots_per_rank, may_cut)
    return layer.after


@kernel
def _order(now: Array, new: Array, slots_per_rank: int) -> Array:
    """Slots that differ, of the rank with most of them first: it decides how many hops there are."""
    differs = np.flatnonzero(now != new)
    count = np.bincount(differs // slots_per_rank, minlength=1)
    return differs[np.argsort(differs - len(now) * count[differs // slots_per_rank])]


@kernel
def _follow(layer: _Layer, start: int, slots_per_rank: int, may_cut: bool) -> None:
    """Give `start` its final expert, and so on along the chain; nothing, if it meets full ranks and must not be cut."""
    length, slot = 0, start
    while slot >= 0:
        layer.chain[length] = slot
        length += 1
        lost = layer.now[slot]
        _refill(layer, slot, layer.new[slot])
        layer.room[slot // slots_per_rank] -= 1
        if layer.held[lost] > 0:
            return
        slot = _final_slot(layer, lost, slots_per_rank)
    if may_cut and length > 1:
        _refill(layer, start, lost)
        return
    for slot in layer.chain[:length]:
        _refill(layer, slot, layer.now[slot])
        layer.room[slot // slots_per_rank] += 1


@kernel
def _refill(layer: _Layer, slot: int, expert: int) -> None:
    layer.held[layer.after[slot]] -= 1
    layer.held[expert] += 1
    layer.after[slot] = expert


@kernel
def _final_slot(layer: _Layer, expert: int, slots_per_rank: int) -> int:
    """Where an expert may go in this hop, -1 if nowhere: best where the chain ends, then where there is most room."""
    best, most = -1, 0
    for slot in np.flatnonzero(layer.new == expert):
        room = layer.room[slot // slots_per_rank]
        if room <= 0 or layer.after[slot] != layer.now[slot]:
            continue
        if layer.held[layer.now[slot]] > 1:
            return slot
        if room > most:
            best, most = slot, room
    return best
