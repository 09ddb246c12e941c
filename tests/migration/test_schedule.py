"""The guarantees that the schedule's docstring states, each held against a plain reading of the moves."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from eplb_plugin import PluginError, Topology
from eplb_plugin.migration.schedule import Schedule, schedule
from strategies import QUICK, migrations

Migration = tuple[Any, Any, Topology]


def moves(plan: Schedule) -> list[tuple[int, ...]]:
    """(layer, expert, source, target, round, slot, relay_row, row) of every move."""
    columns = (plan.layer, plan.expert, plan.source, plan.target, plan.round, plan.slot, plan.relay_row, plan.row)
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


@given(migrations())
@QUICK
def test_it_turns_old_into_new(case: Migration) -> None:
    """Rows read from the old placement in the order of rounds, then written, give the new one; nothing else changes."""
    old, new, topology = case
    plan = schedule(old, new, topology)
    staging: dict[tuple[int, int, int], int] = {}
    for layer, expert, source, target, _, slot, relay_row, row in sorted(moves(plan), key=lambda move: move[4]):
        if slot >= 0:
            assert old[layer, source * topology.slots_per_rank + slot] == expert
            assert relay_row == -1
        else:
            assert staging[layer, source, relay_row] == expert  # has arrived in an earlier round
        assert (layer, target, row) not in staging
        staging[layer, target, row] = expert
    result = old.copy()
    for (layer, slot), row in np.ndenumerate(plan.row_of_slot):
        assert (row >= 0) == (old[layer, slot] != new[layer, slot])
        if row >= 0:
            result[layer, slot] = staging[layer, int(topology.rank_of_slot[slot]), int(row)]
    assert np.array_equal(result, new)
    assert plan.changed_layers == np.flatnonzero((old != new).any(axis=1)).tolist()


@given(migrations())
@QUICK
def test_staging_rows_are_dense_and_single(case: Migration) -> None:
    """A rank stages an expert once, however many slots want it, in rows 0 … n - 1."""
    plan = schedule(*case)
    rows = defaultdict(list)
    for layer, expert, _, target, _, _, _, row in moves(plan):
        rows[layer, target].append((row, expert))
    for found in rows.values():
        assert [row for row, _ in found] == list(range(len(found)))
        assert len({expert for _, expert in found}) == len(found)
    counts = {key: int(count) for key, count in np.ndenumerate(plan.staged_rows) if count}
    assert counts == {key: len(found) for key, found in rows.items()}


@given(migrations())
@QUICK
def test_bytes_per_link(case: Migration) -> None:
    """Bytes between ranks and nodes are those of the moves, with each layer's own expert size."""
    old, _, topology = case
    plan = schedule(*case)
    sizes = np.arange(1, len(old) + 1) * 1000
    ranks = np.zeros((topology.num_ranks,) * 2, np.int64)
    nodes = np.zeros((topology.num_nodes,) * 2, np.int64)
    for layer, _, source, target, *_ in moves(plan):
        ranks[source, target] += sizes[layer]
        nodes[topology.node_of_rank[source], topology.node_of_rank[target]] += sizes[layer]
    assert np.array_equal(plan.rank_traffic(sizes), ranks)
    assert np.array_equal(plan.node_traffic(sizes), nodes)


def test_a_gateway_passes_on() -> None:
    """Four ranks of a node want an expert of another node: one crossing, three relays from its staging row."""
    old = np.array([[0, 9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 8]])
    new = np.array([[0, 9, 9, 9, 1, 2, 3, 4, 0, 0, 0, 0]])
    with pytest.raises(PluginError, match="logical expert 5 in only one"):
        schedule(old, new, Topology(3, 4, 1))
    old[0, 1:4], new[0, 4:8] = [5, 6, 7], [8, 2, 3, 4]
    old[0, 4], new[0, 1:4] = 1, [5, 6, 7]
    old[0, 4:8], new[0, 4:8] = [1, 2, 3, 8], [1, 2, 3, 8]
    old[0, 8:], new[0, 8:] = [5, 6, 7, 8], [0, 0, 0, 0]
    plan = schedule(old, new, Topology(3, 4, 1))
    assert plan.node_traffic(1)[0, 2] == 1
    assert (plan.relay_row >= 0).sum() == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (np.zeros((1, 3), int), np.zeros((1, 4), int), r"old phy2log: found shape \(1, 3\)"),
        (np.zeros((1, 4), int), np.zeros((2, 4), int), r"new phy2log: found \(2, 4\)"),
        (np.zeros((1, 4), int), np.full((1, 4), -1), "ids -1 to -1"),
        (np.zeros((1, 4), int), np.full((1, 4), 4), "ids 4 to 4"),
        (np.zeros((1, 4)), np.zeros((1, 4)), "float64"),
        (np.zeros((1, 4), int), np.array([[0, 0, 0, 1]]), "expert 1 in only one"),
    ],
)
def test_what_does_not_fit_is_refused(old: Any, new: Any, message: str) -> None:
    """Bad maps end in one line, not in a wrong move."""
    with pytest.raises(PluginError, match=message):
        schedule(old, new, Topology(1, 2, 2))
