"""The token rows that a layer is planned on."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import RoutingStatistics, Topology
from eplb_plugin.dispatch.rules import HASH_MASK, HASH_MULTIPLIER
from eplb_plugin.planning.sample import every, knows_tokens, layer_tokens, no_tokens, thinned
from eplb_plugin.workloads.routing import ClusteredRouter

TOPOLOGY = Topology(2, 2, 8)


def recorded(tokens: int = 100) -> RoutingStatistics:
    return RoutingStatistics.from_topk(ClusteredRouter(1, 32, 4, num_topics=6).window(tokens), 32)


@pytest.mark.parametrize(("most", "step"), [(1000, 1), (100, 1), (99, 2), (30, 4)])
def test_a_sample_is_thinned_out_evenly(most: int, step: int):
    """Every n-th row, in order; and co-activation as recorded, without experts beside themselves."""
    statistics = recorded()
    tokens, pairs = layer_tokens(statistics, 0, TOPOLOGY, "hash", most)
    assert np.array_equal(tokens.rows, statistics.sample[0][::step])
    assert len(tokens.source) == len(tokens.key) == len(tokens.rows) <= most
    assert np.array_equal(pairs, statistics.coactivation[0] * (1 - np.eye(32)))
    again = thinned(tokens, 10)
    assert len(again.rows) <= 10
    assert np.array_equal(every(tokens, 3, 1).source, tokens.source[1::3])


def test_without_pair_counts_they_are_those_of_the_rows():
    statistics = recorded()
    pairs = layer_tokens(RoutingStatistics(statistics.load, sample=statistics.sample), 0, TOPOLOGY, "hash")[1]
    assert np.array_equal(pairs, statistics.coactivation[0] * (1 - np.eye(32)))


@pytest.mark.parametrize("rule", ["hash", "nearest", "weighted", "cover"])
def test_sources_are_spread_evenly_and_keys_are_the_rules(rule: str):
    """Every rank gets about as many; `nearest` chooses by source, the others by a hash of the position."""
    tokens, _ = layer_tokens(recorded(2000), 0, TOPOLOGY, rule)
    assert np.bincount(tokens.source, minlength=4).min() > 400
    hashed = np.arange(2000) * HASH_MULTIPLIER & HASH_MASK
    assert np.array_equal(tokens.key, tokens.source if rule == "nearest" else hashed)


def test_what_tells_which_experts_go_together():
    full = recorded()
    assert knows_tokens(full)
    assert knows_tokens(RoutingStatistics(full.load, full.coactivation))
    assert not knows_tokens(RoutingStatistics(full.load))
    assert len(no_tokens().rows) == 0


def test_no_rows_are_drawn_where_there_are_no_pairs():
    """A layer that was idle, or whose tokens chose one expert each."""
    load = np.arange(8.0)
    for some in (load, load * 0.0):
        statistics = RoutingStatistics(some[None], np.diag(some)[None])
        assert len(layer_tokens(statistics, 0, TOPOLOGY, "hash")[0].rows) == 0


def test_rows_drawn_from_pairs_have_those_pairs():
    rows = ClusteredRouter(1, 32, 4, num_topics=6).window(8192)
    full = RoutingStatistics.from_topk(rows, 32)
    tokens, pairs = layer_tokens(RoutingStatistics(full.load, full.coactivation), 0, Topology(2, 2, 8), "hash")
    drawn = RoutingStatistics.from_topk(tokens.rows[None], 32)
    assert tokens.rows.shape[1] == 4
    assert np.corrcoef(drawn.load[0], full.load[0])[0, 1] > 0.98
    upper = np.triu_indices(32, 1)
    assert np.corrcoef(drawn.coactivation[0][upper], pairs[upper])[0, 1] > 0.95
