"""Visits kept up to date while experts change places: always those counted anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.traffic.node_visits import (
    list_tokens,
    most_arrivals,
    open_visits,
    real_changes,
    relief,
    swap_changes,
    swap_experts,
    swap_worth,
    worth_of,
)  # fmt: skip
from eplb_plugin.planning.traffic.weighted import INGRESS_PRICE
from strategies import QUICK, token_rows


def visits_of(rows, node_of) -> int:
    return sum(len({int(node_of[e]) for e in row if e >= 0}) for row in rows)


@QUICK
@given(token_rows(1, 9), st.integers(2, 4), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8))
def test_gain_tables_stay_exact(rows, nodes: int, swaps):
    """After any swaps the tables equal freshly built ones, and the saved visits are the difference of the totals."""
    rows = rows[0].astype(np.int16)
    node_of = (np.arange(9) % nodes).astype(np.int32)
    own = np.zeros(nodes, np.int64)
    visits = open_visits(rows, np.zeros((len(rows), nodes), np.int16), node_of, own)
    for mine, other in swaps:
        if node_of[mine] == node_of[other]:
            continue
        before = visits_of(rows, node_of)
        assert swap_experts(visits, mine, other) == before - visits_of(rows, node_of)
    fresh = open_visits(rows, np.zeros((len(rows), nodes), np.int16), node_of.copy(), own)
    for kept, new in zip(visits, fresh, strict=True):
        assert np.array_equal(kept, new)


def visited(rows, node_of):
    """[3] tokens that visit a node."""
    nodes = [np.where(rows >= 0, node_of[rows], -1) == node for node in range(3)]
    return [int(on_node.any(axis=1).sum()) for on_node in nodes]


@QUICK
@given(token_rows(1, 8), st.integers(0, 7), st.integers(0, 7))
def test_changes_of_a_swap_are_those_of_the_visits(rows, mine: int, other: int):
    """The real ones always, the tables' where no token has both experts, and never more than the real ones."""
    rows = rows[0].astype(np.int16)
    node_of = (np.arange(8) % 3).astype(np.int32)
    if node_of[mine] == node_of[other]:
        return
    visits = open_visits(rows, np.zeros((len(rows), 3), np.int16), node_of.copy(), np.zeros(3, np.int64))
    assert visits.visited.tolist() == visited(rows, node_of)
    swapped = node_of.copy()
    swapped[[mine, other]] = node_of[[other, mine]]
    after, before = visited(rows, swapped), visited(rows, node_of)
    changes = tuple(after[node] - before[node] for node in (node_of[mine], node_of[other]))
    guessed = swap_changes(visits, mine, other)
    assert real_changes(visits, mine, other) == changes
    assert guessed[0] <= changes[0]
    assert guessed[1] <= changes[1]
    if not ((rows == mine).any(axis=1) & (rows == other).any(axis=1)).any():
        assert guessed == changes


@QUICK
@given(token_rows(1, 6))
def test_tokens_are_listed_by_expert(rows):
    start, listed = list_tokens(rows[0].astype(np.int16), 6)
    for expert in range(6):
        found = listed[start[expert] : start[expert + 1]].tolist()
        assert found == np.flatnonzero((rows[0] == expert).any(axis=1)).tolist()


def test_only_what_exceeds_the_bound_is_relieved():
    assert relief(12.0, 5.0, -4.0, 4.0, 10.0) == 2.0
    assert relief(12.0, 9.0, -4.0, 4.0, 10.0) == -1.0
    assert relief(8.0, 9.0, 1.0, 1.0, 10.0) == 0.0


def test_a_swap_is_worth_visits_and_arrivals_in_excess():
    """Three tokens select 0 and 2, which lie apart; all come from node 1, so that node 0 alone gets arrivals."""
    rows = np.array([[0, 2]] * 3 + [[1, 3]], np.int16)
    node_of, own = np.array([0, 0, 1, 1], np.int32), np.array([0, 4], np.int64)
    visits = open_visits(rows, np.zeros((4, 2), np.int16), node_of, own)
    assert visits.visited.tolist() == [4, 4]
    assert most_arrivals(visits, 0.0) == 2.0
    assert swap_changes(visits, 0, 3) == real_changes(visits, 0, 3) == (-3, -1)
    assert worth_of(visits, 0, 1, -3, -1, 2.0) == pytest.approx(4.0 + 2.0 * INGRESS_PRICE)
    assert swap_worth(visits, 0, 3, 100.0) == 4.0
    assert swap_experts(visits, 0, 3) == 4
    assert node_of.tolist() == [1, 0, 1, 0]
