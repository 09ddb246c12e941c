"""Which redundant copy of a node should give its slot to which expert, so that fewer tokens cross."""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from .counts import TOO_HEAVY


@kernel
def best_exchange(
    saved: Array, lost: Array, load: Array, copies: Array, barred: Array, mean_rank: float
) -> tuple[float, int, int, int]:
    """(gain, leaving expert, coming expert, node) of the exchange on one node worth most; gain 0 if none gains.

    saved, lost: [E, nodes] what an expert's first copy on a node saves, and what its only one there would be missed
    for; barred: [E, nodes] bool, no exchange here. A copy stays if its expert would become too heavy for a rank.
    """
    best, leaving, coming, where = 0.0, -1, -1, -1
    total = copies.sum(axis=1)
    for node in range(copies.shape[1]):
        least, most, out, into = np.inf, 0.0, -1, -1
        for expert in range(load.shape[0]):
            if barred[expert, node]:
                continue
            if copies[expert, node] == 0:
                if saved[expert, node] > most:
                    most, into = saved[expert, node], expert
            elif total[expert] > 1 and load[expert] <= TOO_HEAVY * mean_rank * (total[expert] - 1):
                missed = lost[expert, node] if copies[expert, node] == 1 else 0.0
                if missed < least:
                    least, out = missed, expert
        if out >= 0 and into >= 0 and most - least > best:
            best, leaving, coming, where = most - least, out, into, node
    return best, leaving, coming, where
