"""A source's row, computed alone, is its part of one dealing that sees all sources."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.dispatch.exact.quotas import bounds_above, solve
from eplb_plugin.dispatch.exact.replicas import Replicas, replicas_of
from eplb_plugin.dispatch.exact.rows import Seen, row_of_source
from strategies import QUICK, placements, topologies


def dealt(replicas: Replicas, counts, quota, source_of_rank) -> np.ndarray:
    """[sources, S, nodes + 1]: selection by selection, as the rounds are described."""
    rows, left = np.zeros((len(counts), len(quota), counts.shape[2]), int), quota.astype(int).copy()
    need = counts.astype(int).copy()

    def give(source: int, expert: int, wish: int, places) -> None:
        for place in places:
            while left[place] and need[source, expert, wish]:
                rows[source, place, wish] += 1
                left[place] -= 1
                need[source, expert, wish] -= 1

    for expert in range(counts.shape[1]):
        places = range(replicas.start[expert], replicas.start[expert + 1])
        for place in places:
            give(source_of_rank[replicas.rank[place]], expert, replicas.node[place], [place])
        for wish in range(counts.shape[2] - 1):
            for source in range(len(counts)):
                give(source, expert, wish, [place for place in places if replicas.node[place] == wish])
        for source in range(len(counts)):
            for wish in range(counts.shape[2]):
                give(source, expert, wish, places)
    assert not need.any()
    return rows


@QUICK
@given(st.data())
def test_a_row_alone_is_its_part_of_the_whole(data: st.DataObject):
    """Whether sources are ranks or groups of ranks that route the same tokens, on one node or several."""
    experts = data.draw(st.integers(1, 10))
    topology = data.draw(topologies(experts))
    replicas = replicas_of(data.draw(placements(1, experts, topology.num_slots)).phy2log[0], topology)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    together = data.draw(st.sampled_from([n for n in range(1, topology.num_ranks + 1) if topology.num_ranks % n == 0]))
    source_of_rank = np.arange(topology.num_ranks, dtype=np.int32) // together
    shape = (topology.num_ranks // together, len(replicas.expert), topology.num_nodes + 1)
    counts = rng.integers(0, data.draw(st.sampled_from([2, 9])), shape, dtype=np.int32)
    for row in range(shape[1]):
        on = replicas.node[replicas.start[row] : replicas.start[row + 1]]
        counts[:, row, :-1] *= np.isin(np.arange(topology.num_nodes), on)
    counts[rng.random(shape[0]) < 0.3] = 0  # idle ranks
    sizes = np.diff(replicas.start)
    whole = counts.sum(0, dtype=np.int32)
    total = whole.sum(1, dtype=np.int32)
    wished, base = np.ascontiguousarray(whole[:, :-1]), np.zeros(topology.num_ranks, np.int32)
    quota = solve(replicas, wished, total, base, 0, bounds_above(replicas.colours))
    if data.draw(st.booleans()):  # any others, which leave wishes unfulfilled
        parts = [rng.multinomial(number, np.full(size, 1 / size)) for number, size in zip(total, sizes, strict=True)]
        quota = np.concatenate([*parts, []]).astype(np.int32)
    expected = dealt(replicas, counts, quota, source_of_rank)
    assert (expected.sum((0, 2)) == quota).all()
    for source in range(shape[0]):
        seen = Seen(counts, whole, counts[:source].sum(0, dtype=np.int32), source, source_of_rank)
        row = row_of_source(replicas, quota, seen)
        assert np.array_equal(row, expected[source])
