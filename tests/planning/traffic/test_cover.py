"""The nodes that tokens visit under `cover`, told without the greedy search where there is nothing to search."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.dispatch.cover import allowed_nodes, needed_nodes
from eplb_plugin.limits import MOST_NODES
from eplb_plugin.planning.sample import Tokens
from eplb_plugin.planning.traffic.cover import count_choices, list_shared, visited_nodes
from strategies import QUICK


@QUICK
@given(st.lists(st.integers(-1, 9), min_size=1, max_size=8), st.lists(st.integers(1, 31), min_size=10, max_size=10))
def test_visited_nodes_are_the_rules_own(row: list[int], masks: list[int]):
    rows, nodes, shared = np.array([row] * 3, np.int16), np.array(masks, np.int64), np.empty(len(row), np.int64)
    count, fixed = list_shared(rows, 2, nodes, shared)
    for own in range(5):
        assert visited_nodes(rows, 2, own, nodes, shared, count, fixed) == needed_nodes(rows[2], own, nodes, 2)


def test_choices_of_every_expert_sum_to_one():
    """Of those with one node a single choice, of the others what the tokens were seen to choose from."""
    rng = np.random.default_rng(0)
    rows = np.argsort(rng.random((200, 16)), axis=1)[:, :4].astype(np.int16)
    rows[rows == 15] = -1  # an expert without tokens
    masks = rng.integers(1, 8, 16)
    tokens = Tokens(rows, rng.integers(0, 3, 200).astype(np.int32), np.arange(200))
    choices = count_choices(tokens, masks, np.arange(3, dtype=np.int32), 3, 2)
    assert np.allclose(np.bincount(choices.expert, choices.share, 16), 1.0)
    single = (masks & (masks - 1)) == 0
    for expert in np.flatnonzero(single | (np.arange(16) == 15)):
        assert choices.nodes[choices.expert == expert].tolist() == [masks[expert]]
    assert (choices.nodes & ~masks[choices.expert] == 0).all()
    assert len(choices.expert) > single.sum() + 16 - single.sum()


@pytest.mark.parametrize("experts", [16, 256, 512])
@pytest.mark.parametrize("nodes", [1, 7, 8, 9, 31, 33, 54, 55, 56, 57, MOST_NODES])
def test_choices_are_those_that_were_counted(experts: int, nodes: int):
    """At every width of a set: those on the highest nodes, beside the highest expert, are told apart like any."""
    rng = np.random.default_rng(experts * nodes)
    rows = np.argsort(rng.random((60, experts)), axis=1)[:, :8].astype(np.int16)
    masks = np.zeros(experts, np.int64)
    for turn in range(3):
        masks |= np.int64(1) << rng.integers(0, nodes, experts)
        masks[-3 + turn] |= np.int64(1) << (nodes - 1)
    tokens = Tokens(rows, rng.integers(0, nodes, 60).astype(np.int32), np.arange(60))
    choices = count_choices(tokens, masks, np.arange(nodes, dtype=np.int32), nodes, 1)
    counted: Counter[tuple[int, int]] = Counter()
    for token, row in enumerate(rows):
        needed = needed_nodes(row, tokens.source[token], masks, token)
        for expert in row[[bin(masks[one]).count("1") > 1 for one in row]]:
            counted[int(expert), allowed_nodes(masks[expert], needed)] += 1
    selected = Counter(expert for expert, _ in counted.elements())
    expected = {key: times / selected[key[0]] for key, times in counted.items()}
    expected |= {(one, int(masks[one])): 1.0 for one in range(experts) if one not in selected}
    found = dict(zip(zip(choices.expert.tolist(), choices.nodes.tolist(), strict=True), choices.share, strict=True))
    assert len(found) == len(choices.expert)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("nodes", [57, MOST_NODES])
def test_weights_of_every_expert_sum_to_one(nodes: int):
    """Also where a set of nodes and an expert would not fit into one number of 64 bits."""
    rng = np.random.default_rng(nodes)
    ids = np.argsort(rng.random((1, 500, 256)) ** rng.lognormal(0, 1, 256), axis=2)[:, :, :8]
    made = plan(RoutingStatistics.from_topk(ids, 256), Topology(nodes, 1, 6), dispatch="cover")
    assert np.allclose(np.bincount(made.placement.phy2log[0], made.replica_weights[0], 256), 1.0)


@pytest.mark.parametrize("dispatch", ["cover", "weighted"])
def test_more_nodes_than_a_set_has_bits_are_refused(dispatch):
    statistics = RoutingStatistics.from_topk(np.zeros((1, 4, 1), np.int64), 8)
    with pytest.raises(PluginError, match="found 63, expected at most 62"):
        plan(statistics, Topology(63, 1, 1), policy="balanced", dispatch=dispatch)
