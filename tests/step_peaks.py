"""How even quotas can make single steps under a placement."""

from __future__ import annotations

import numpy as np

from eplb_plugin import Topology
from eplb_plugin.planning.single_steps.peaks import peaks_of


def peaks(phy2log, steps, topology: Topology) -> float:
    room = np.empty((len(steps), topology.num_ranks))
    return peaks_of(phy2log.astype(np.int64), steps.astype(np.float64), topology.slots_per_rank, np.inf, room)
