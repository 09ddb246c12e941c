"""Moved slots: how many, and who may have how many where only so many are allowed in all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...jit import Array, kernel
from ...topology import Topology

NO_LIMIT = 1 << 30  # moved slots


@kernel
def count_moved(phy2log: Array, previous: Array, ranks: int, experts: int) -> Array:
    """phy2log, previous: [L, P] -> [L] slots whose rank must receive an expert that it did not hold."""
    layers, slots = phy2log.shape[0], phy2log.shape[1] // ranks
    moved, missing = np.zeros(layers, np.int64), np.zeros(experts, np.int64)
    for layer in range(layers):
        for first in range(0, phy2log.shape[1], slots):
            for slot in range(first, first + slots):
                missing[phy2log[layer, slot]] += 1
                missing[previous[layer, slot]] -= 1
            for slot in range(first, first + slots):
                moved[layer] += max(missing[phy2log[layer, slot]], 0)
                missing[phy2log[layer, slot]] = 0  # counted once
            for slot in range(first, first + slots):
                missing[previous[layer, slot]] = 0
    return moved


class Allowed:
    """Moved slots that the layers of one plan may have: at most `cap` each, and `total` together; None = no bound.

    Layers come one after another, the neediest first, so that none has to be repaired twice: each may have its share,
    by need, of what is left, and what it does not use is left for those that follow.
    """

    def __init__(self, cap: int | None, total: int | None, topology: Topology, experts: int) -> None:
        self._cap = NO_LIMIT if cap is None else cap
        self._left = total
        self._ranks, self._experts = topology.num_ranks, experts

    def in_turn(self, need: Array) -> Iterator[tuple[int, int]]:
        """need: [L] >= 0 -> (layer, its budget), each once; `spend` has to follow each."""
        waiting = float(need.sum())
        for layer in np.argsort(-need, kind="stable"):
            budget = self._cap
            if self._left is not None:
                share = need[layer] / waiting if waiting > 0.0 else 1.0
                budget = min(budget, int(np.ceil(min(share, 1.0) * self._left)))
            waiting -= float(need[layer])
            yield int(layer), budget

    def spend(self, phy2log: Array, old: Array) -> None:
        """A layer, [P], went from `old` to `phy2log`."""
        if self._left is not None:
            self._left -= int(count_moved(phy2log[None], old[None], self._ranks, self._experts)[0])


def share_out(wanted: Array, total: int) -> Array:
    """wanted: [L] -> [L] int64 with sum `total`, in proportion and nowhere more than wanted (largest remainders)."""
    if wanted.sum() <= total:
        return wanted.astype(np.int64)
    exact = wanted * (total / wanted.sum())
    shares = np.floor(exact).astype(np.int64)
    late = np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]
    shares[late] += 1
    return shares
