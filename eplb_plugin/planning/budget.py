"""Moved slots: how many, and who may have how many where only so many are allowed in all."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel


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


def share_out(wanted: Array, total: int) -> Array:
    """wanted: [L] -> [L] int64 with sum `total`, in proportion and nowhere more than wanted (largest remainders)."""
    if wanted.sum() <= total:
        return wanted.astype(np.int64)
    exact = wanted * (total / wanted.sum())
    shares = np.floor(exact).astype(np.int64)
    late = np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]
    shares[late] += 1
    return shares
