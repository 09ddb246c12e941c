"""Peaks that quotas leave, against the least that any could: by all sets of ranks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from step_peaks import peaks
from strategies import QUICK, placements, topologies


def least_peak(phy2log, load, topology: Topology) -> float:
    """Of all sets of ranks, what is confined to one, divided by its ranks."""
    ranks = [set(topology.rank_of_slot[phy2log == expert].tolist()) for expert in range(len(load))]
    sets = [
        set(chosen)
        for size in range(1, topology.num_ranks + 1)
        for chosen in combinations(range(topology.num_ranks), size)
    ]
    return max(sum(load[e] for e in range(len(load)) if ranks[e] <= chosen) / len(chosen) for chosen in sets)


@QUICK
@given(st.data())
def test_peaks_are_near_the_least_possible(data: st.DataObject):
    """Also where a rank holds two slots of an expert, which makes no rank lighter."""
    experts = data.draw(st.integers(1, 10))
    topology = data.draw(topologies(experts, max_nodes=2, max_ranks_per_node=3))
    phy2log = data.draw(placements(1, experts, topology.num_slots)).phy2log[0]
    load = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 50, experts)
    least = least_peak(phy2log, load, topology)
    assert 0.999 * least <= peaks(phy2log, load[None], topology) <= 1.15 * least + 1e-9
