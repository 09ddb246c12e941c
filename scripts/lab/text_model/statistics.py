"""Two figures of routing: how far experts are used together, and how far two windows use other experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import RoutingStatistics


def lift(statistics: RoutingStatistics) -> NDArray[np.float64]:
    """[layers]: how often a token's pair of experts is met, over what loads alone would have; mean over pairs met.

    1 = experts are chosen independently. It is 1 + chi² / pairs of the table of pairs.
    """
    assert statistics.coactivation is not None
    above = np.triu_indices(statistics.num_experts, 1)
    lifts = []
    for load, pairs in zip(statistics.load.astype(float), statistics.coactivation.astype(float), strict=True):
        met, alone = pairs[above], np.outer(load, load)[above]
        alone = np.maximum(alone * met.sum() / alone.sum(), 1e-9)
        lifts.append((met * met / alone).sum() / met.sum())
    return np.array(lifts)


def moved(one: RoutingStatistics, other: RoutingStatistics) -> NDArray[np.float64]:
    """[layers]: share of the selections that go to other experts (total variation distance of the loads)."""
    shares = [window.load / window.load.sum(1, keepdims=True) for window in (one, other)]
    return np.abs(shares[0] - shares[1]).sum(1) / 2
