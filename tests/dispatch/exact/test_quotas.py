"""Quotas: they add up, no rank is heavier than it must be, and wishes are kept where that costs no evenness."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.dispatch.exact.quotas import bounds_above, first_of_two, keep_wishes, solve, spread
from eplb_plugin.dispatch.exact.replicas import Replicas, replicas_of
from strategies import QUICK, placements, topologies


@st.composite
def steps(draw: st.DrawFn, max_experts: int = 12):
    """-> replicas of a placement, wished [M, nodes], total [M], base [ranks] of a step with few or many selections."""
    experts = draw(st.integers(1, max_experts))
    topology = draw(topologies(experts))
    replicas = replicas_of(draw(placements(1, experts, topology.num_slots)).phy2log[0], topology)
    rng, most = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from([0, 2, 30, 3000]))
    wished = rng.integers(0, most + 1, (len(replicas.expert), topology.num_nodes + 1), dtype=np.int32)
    for row in range(len(wished)):
        on = replicas.node[replicas.start[row] : replicas.start[row + 1]]
        wished[row, :-1] *= np.isin(np.arange(topology.num_nodes), on)  # nobody wishes for a node without a replica
    base = rng.integers(0, 3 * most + 1, topology.num_ranks, dtype=np.int32)
    return replicas, np.ascontiguousarray(wished[:, :-1]), wished.sum(1, dtype=np.int32), base


def rank_load(replicas: Replicas, quota, base) -> np.ndarray:
    return base + np.bincount(replicas.rank, quota, minlength=len(base)).astype(int)


def least_peak(replicas: Replicas, total, base) -> int:
    """By the theorem of max-flow and min-cut: some set of ranks must carry what can go nowhere else."""
    most = int(base.max())
    for size in range(1, len(base) + 1):
        for ranks in combinations(range(len(base)), size):
            confined = sum(
                int(total[row])
                for row in range(len(total))
                if set(replicas.rank[replicas.start[row] : replicas.start[row + 1]].tolist()) <= set(ranks)
            )
            most = max(most, -(-(confined + int(base[list(ranks)].sum())) // size))
    return most


@QUICK
@given(steps(), st.integers(0, 1024))
def test_quotas_add_up(step, tolerance: int):
    replicas, wished, total, base = step
    quota = solve(replicas, wished, total, base, tolerance, bounds_above(replicas.colours))
    assert quota.dtype == np.int32
    assert quota.min(initial=0) >= 0
    row = np.repeat(np.arange(len(total)), np.diff(replicas.start))
    assert np.bincount(row, quota, minlength=len(total)).astype(int).tolist() == total.tolist()


@QUICK
@given(steps())
def test_no_rank_is_much_heavier_than_some_rank_must_be(step):
    replicas, wished, total, base = step
    quota = solve(replicas, wished, total, base, 0, bounds_above(replicas.colours))
    peak, least = int(rank_load(replicas, quota, base).max()), least_peak(replicas, total, base)
    assert least <= peak <= 1.1 * least + 2


def test_the_busiest_rank_is_the_lightest_possible_in_nearly_all_cases():
    rng, excess = np.random.default_rng(0), []
    for _ in range(60):
        topology = Topology(2, 4, 5)
        phy2log = rng.permutation(np.concatenate([np.arange(32), rng.integers(0, 32, 8)]))
        replicas = replicas_of(phy2log, topology)
        total = rng.integers(10, 400, len(replicas.expert)).astype(np.int32)
        base, wished = rng.integers(100, 700, 8).astype(np.int32), np.zeros((len(total), 2), np.int32)
        quota = solve(replicas, wished, total, base, 0, bounds_above(replicas.colours))
        excess.append(rank_load(replicas, quota, base).max() / least_peak(replicas, total, base) - 1.0)
    assert np.median(excess) == 0.0
    assert max(excess) < 0.01


def test_wishes_are_kept_where_ranks_are_even_with_them():
    """Two nodes of one rank, every expert on both: half of the selections wish for each node."""
    replicas = replicas_of([0, 1, 2, 0, 1, 2], Topology(2, 1, 3))
    wished = np.array([[90, 10], [10, 90], [50, 50]], np.int32)
    quota = solve(replicas, wished, wished.sum(1, dtype=np.int32), np.zeros(2, np.int32), 0, bounds_above(3))
    served = quota.reshape(3, 2)
    assert served.sum(0).tolist() == [150, 150]
    assert np.minimum(served, wished[replicas.expert]).sum() >= 0.97 * wished.sum()


def test_a_tolerance_buys_wishes():
    replicas = replicas_of([0, 1, 0, 1], Topology(2, 1, 2))
    wished, base = np.array([[120, 80], [120, 80]], np.int32), np.zeros(2, np.int32)
    even, loose = (
        solve(replicas, wished, wished.sum(1, dtype=np.int32), base, tolerance, bounds_above(2)).reshape(2, 2)
        for tolerance in (0, 1024)
    )
    assert even.sum(0).tolist() == [200, 200]
    assert loose.tolist() == wished.tolist()


@QUICK
@given(st.data())
def test_two_replicas_in_closed_form_are_the_general_case(data: st.DataObject):
    count = st.integers(0, data.draw(st.sampled_from([3, 1000])))
    one, other, bound, total = (data.draw(count) for _ in range(4))
    others, late = np.array([one, other]), data.draw(st.integers(0, 1))
    node = np.array(data.draw(st.sampled_from([[0, 0], [0, 1]])), np.int32)
    wished = np.zeros(2, np.int32)
    wished[0] = data.draw(st.integers(0, total))
    wished[1] = data.draw(st.integers(0, total - wished[0])) if node[1] else 0
    kept, mine = np.zeros(2, np.int64), np.zeros(2, np.int64)
    keep_wishes(others, node, wished, bound, kept)
    spread(others, node, total, late, kept, mine)
    first = first_of_two(other - one, total, *(kept if node[1] else (0, 0)), late)
    assert mine.tolist() == [first, total - first]


@QUICK
@given(st.data())
def test_one_expert_is_spread_as_evenly_as_what_nodes_keep_allows(data: st.DataObject):
    """Against trying every way to spread a few selections over up to four replicas."""
    rng, total = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), data.draw(st.integers(0, 6))
    node = np.array(data.draw(st.sampled_from([[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 0, 1, 1]])), np.int32)
    others, bound = rng.integers(0, 5, len(node)), data.draw(st.integers(0, 8))
    wished = rng.multinomial(data.draw(st.integers(0, total)), np.full(node[-1] + 1, 1 / (node[-1] + 1))).astype(
        np.int32
    )
    kept, mine = np.zeros(len(node), np.int64), np.zeros(len(node), np.int64)
    keep_wishes(others, node, wished, bound, kept)
    spread(others, node, total, data.draw(st.integers(0, 1)), kept, mine)
    least = {
        int(node[first]): int(kept[first]) for first in range(len(node)) if first == 0 or node[first] != node[first - 1]
    }
    ways = [way for way in product(range(total + 1), repeat=len(node)) if sum(way) == total]
    allowed = [way for way in ways if all(sum(np.array(way)[node == here]) >= most for here, most in least.items())]
    assert mine.sum() == total
    assert all(mine[node == here].sum() >= most for here, most in least.items())
    assert ((mine + others) ** 2).sum() == min(((np.array(way) + others) ** 2).sum() for way in allowed)
