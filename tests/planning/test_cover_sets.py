"""The nodes that tokens visit under `cover`, told without the greedy search where there is nothing to search."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.cover import needed_nodes
from eplb_plugin.planning.cover_sets import count_choices, list_shared, visited_nodes
from eplb_plugin.planning.tokens import Tokens
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
