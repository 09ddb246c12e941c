"""Wishes: on nodes where a selection costs no further copy, whether a token lies on one node or on several."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from covering import mixed_slowly
from eplb_plugin.dispatch.cover import opened_nodes
from eplb_plugin.dispatch.exact.replicas import replicas_of
from eplb_plugin.dispatch.exact.wishes import Wisher, masks_of, token_wishes
from strategies import QUICK, placements, topologies


@QUICK
@given(st.data())
def test_wishes_are_as_described(data: st.DataObject):
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    phy2log = data.draw(placements(1, experts, topology.num_slots)).phy2log[0]
    masks, nodes = masks_of(replicas_of(phy2log, topology)), topology.num_nodes
    on = [set(topology.node_of_slot[phy2log == expert].tolist()) for expert in range(experts)]
    assert [{node for node in range(nodes) if mask >> node & 1} for mask in masks.tolist()] == on
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lies = set(rng.choice(nodes, rng.integers(1, nodes + 1), replace=False).tolist())
    held, rank, covers = (
        sum(1 << node for node in lies),
        int(rng.integers(topology.num_ranks)),
        data.draw(st.booleans()),
    )
    for index in range(30):
        row = rng.permutation(experts)[: min(6, experts)].astype(np.int32)
        row[rng.random(len(row)) < 0.1] = -1
        wishes, key = np.empty(len(row), np.int32), mixed_slowly(index, rank)
        token_wishes(row, index, Wisher(masks, held, rank, nodes, covers), wishes)
        needed = opened_nodes(row, held, masks, key) if covers else held
        visited = {node for node in range(nodes) if needed >> node & 1}
        for expert, wish in zip(row.tolist(), wishes.tolist(), strict=True):
            near = [] if expert < 0 else sorted(on[expert] & lies or on[expert] & visited)
            if not near or (covers and on[expert] <= visited):
                assert wish == nodes
            else:
                assert wish == near[mixed_slowly(key, expert + nodes) * len(near) >> 32]
