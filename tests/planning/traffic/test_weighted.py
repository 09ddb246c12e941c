"""What a selection costs from every source node, by the bytes of a word for few nodes and one by one for many."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin.dispatch.tables import TABLE_WIDTH
from eplb_plugin.planning.sample import Tokens
from eplb_plugin.planning.traffic.fixed_rules import FEW_NODES
from eplb_plugin.planning.traffic.weighted import MOST_SOURCES, lone_visits, visit_cost


@pytest.mark.parametrize("nodes", [1, 2, 5, FEW_NODES, FEW_NODES + 1])
def test_lone_visits_are_those_that_no_other_expert_makes(nodes: int):
    rng = np.random.default_rng(nodes)
    rows = np.argsort(rng.random((90, 12)), axis=1)[:, :4].astype(np.int16)
    rows[rng.random(rows.shape) < 0.2] = -1
    tokens = Tokens(rows, np.zeros(90, np.int32), rng.integers(0, 1000, 90))
    entries = rng.integers(0, nodes, (nodes, 12, TABLE_WIDTH)).astype(np.int8)
    wanted = np.arange(12) % 3 != 1
    lone, selected = np.zeros((nodes, 12, nodes)), np.zeros((nodes, 12))
    stride = 1 if nodes <= FEW_NODES else -(-nodes // MOST_SOURCES) | 1
    for source in range(nodes):
        for token in range(source % stride, 90, stride):
            row = [expert for expert in rows[token] if expert >= 0]
            taken = {expert: entries[source, expert, tokens.key[token] % TABLE_WIDTH] for expert in row}
            for expert in filter(wanted.__getitem__, row):
                others = {node for other, node in taken.items() if other != expert}
                selected[source, expert] += 1
                for node in set(range(nodes)) - others - {source}:
                    lone[source, expert, node] += 1
    found = lone_visits(tokens, entries, nodes, wanted)
    assert np.array_equal(found[0], lone)
    assert np.array_equal(found[1], selected)
    cost = visit_cost(tokens, entries, nodes, wanted)
    assert np.allclose(cost[selected > 0], lone[selected > 0] / selected[selected > 0][:, None])
    assert np.array_equal(cost[:, 1], 1.0 - np.eye(nodes)), "an expert that is not wanted"
