"""What a placement offers: replicas on several ranks, in colours that share no rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, Topology
from eplb_plugin.dispatch.exact.replicas import MOST_REPLICAS, refuse_crowds, replicas_of
from strategies import QUICK, placements, topologies


@QUICK
@given(st.data())
def test_every_expert_once_and_colours_share_no_rank(data: st.DataObject):
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    phy2log = data.draw(placements(1, experts, topology.num_slots)).phy2log[0]
    replicas = replicas_of(phy2log, topology)
    ranks = {expert: set(topology.rank_of_slot[phy2log == expert].tolist()) for expert in range(experts)}
    assert sorted(replicas.expert.tolist()) == [expert for expert in ranks if len(ranks[expert]) > 1]
    for row, expert in enumerate(replicas.expert.tolist()):
        places = slice(replicas.start[row], replicas.start[row + 1])
        assert replicas.row_of[expert] == row
        assert replicas.only_slot[expert] == -1
        assert (phy2log[replicas.slot[places]] == expert).all()
        assert sorted(replicas.rank[places].tolist()) == sorted(ranks[expert]), "each rank once"
        assert (np.diff(replicas.node[places]) >= 0).all()
    for first, last in zip(replicas.colour_start[:-1], replicas.colour_start[1:], strict=True):
        together = replicas.rank[replicas.start[first] : replicas.start[last]]
        assert len(set(together.tolist())) == len(together)
    for expert in range(experts):
        if len(ranks[expert]) == 1:
            assert replicas.row_of[expert] == -1
            assert phy2log[replicas.only_slot[expert]] == expert


def test_colours_are_few():
    """Where three experts lie on each rank, three colours do: a cycle of ranks, neighbours share experts."""
    around = np.arange(6)
    phy2log = np.stack([around, (around + 1) % 6, 6 + around % 3], axis=1).ravel()
    assert replicas_of(phy2log, Topology(1, 6, 3)).colours == 3


def test_what_is_beyond_its_limits_is_refused():
    with pytest.raises(PluginError, match="nodes: found 63"):
        replicas_of(np.arange(63), Topology(63, 1, 1))
    with pytest.raises(PluginError, match=f"replicas: found {MOST_REPLICAS + 1}"):
        replicas_of(np.zeros(MOST_REPLICAS + 1, int), Topology(1, MOST_REPLICAS + 1, 1))
    replicas_of(np.zeros(MOST_REPLICAS, int), Topology(1, MOST_REPLICAS, 1))


def test_no_placement_on_the_way_has_more_replicas_than_it_takes():
    """Old and new slots of an expert count together, those that stay once; each layer for itself."""
    before = np.tile(np.arange(3, dtype=np.int32), (2, 10))
    after = before.copy()
    after[0, 1:20:3] = 0  # seven slots of another expert beside the ten that stay
    with pytest.raises(PluginError, match="replicas: found 17, expected at most 16 slots of one expert, old and new"):
        refuse_crowds(before, after)
    after[0, 1] = 1
    refuse_crowds(before, after)
    refuse_crowds(after, before)
    after[0], after[1] = 1, 1
    with pytest.raises(PluginError, match="replicas: found 30"):
        refuse_crowds(before, after)
