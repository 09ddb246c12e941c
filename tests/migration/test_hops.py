"""Placements on the way: the guarantees that the docstring of `hops` states, each held against a plain count."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import Topology
from eplb_plugin.migration.hops import hops, least_rows
from eplb_plugin.migration.limits import Budget, share_memory
from strategies import QUICK, migrations

Migration = tuple[NDArray[np.int32], NDArray[np.int32], Topology]


def refilled(before: NDArray[np.int32], after: NDArray[np.int32], slots_per_rank: int) -> NDArray[np.int64]:
    """[L, ranks] slots."""
    return (before != after).reshape(len(before), -1, slots_per_rank).sum(axis=2)


def check(old: NDArray[np.int32], new: NDArray[np.int32], size: int, bounds: list[int]) -> list[NDArray[np.int32]]:
    """All guarantees, layer by layer."""
    found = hops(old, new, size, bounds)
    way = [old, *found]
    assert np.array_equal(found[-1], new)
    for layer, bound in enumerate(bounds):
        differ, done = int((old[layer] != new[layer]).sum()), 0
        refills, final = 0, old[layer] == new[layer]
        for before, after in pairwise(way):
            assert set(after[layer]) == set(old[layer])
            count = refilled(before[layer][None], after[layer][None], size)
            assert count.max() <= bound
            refills += int(count.sum())
            done += bool(count.any())
            assert np.array_equal(after[layer][final], new[layer][final])  # once final, always
            final = after[layer] == new[layer]
        assert refills <= 2 * differ
        assert done <= -(-differ // max(1, bound // 2))
        if refilled(old, new, size)[layer].max() <= bound:
            assert (done, refills) == (min(differ, 1), differ)
    assert len(found) == 1 or not np.array_equal(found[-2], new)
    return found


@given(migrations(), st.data())
@QUICK
def test_every_hop_keeps_to_its_bounds(case: Migration, data: st.DataObject) -> None:
    """Any placement to any other, few slots or all, with and without replicas, layers with bounds of their own."""
    old, new, topology = case
    size = topology.slots_per_rank
    bounds = data.draw(st.lists(st.integers(least_rows(size), size), min_size=len(old), max_size=len(old)))
    check(old, new, size, bounds)


def drawn(seed: int, experts: int, slots: int, layers: int = 4) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    rows = [np.r_[np.arange(experts), rng.integers(0, experts, slots - experts)] for _ in range(layers)]
    return rng.permuted(np.array(rows, np.int32), axis=1)


@pytest.mark.parametrize("bound", [2, 3, 5])
@pytest.mark.parametrize("slots", [64, 72])
def test_large_placements(slots: int, bound: int) -> None:
    """Eight ranks, no replicas or an eighth more slots, nearly all of which change."""
    check(drawn(0, 64, slots), drawn(1, 64, slots), slots // 8, [bound] * 4)


def test_replicas_make_room() -> None:
    """256 experts in 288 slots, all placed anew: within a tenth of the fewest hops and refills there can be."""
    for ranks, bound in ((8, 2), (8, 4), (32, 4)):
        old, new = drawn(2, 256, 288), drawn(3, 256, 288)
        way = [old, *check(old, new, 288 // ranks, [bound] * 4)]
        fewest = -(-refilled(old, new, 288 // ranks).max() // bound)
        assert len(way) - 1 <= 1.1 * fewest + 1
        refills = sum(int((one != other).sum()) for one, other in pairwise(way))
        assert refills <= 1.1 * (old != new).sum()


V3_ROW = 3 * 7168 * 2048 + 3 * 56 * 16 * 4 + 16  # FP8 weights, scales of blocks, seal


def changed(old: NDArray[np.int32], slots: int) -> NDArray[np.int32]:
    """So many slots of every layer exchange their experts."""
    rng, new = np.random.default_rng(4), old.copy()
    for row in new:
        at = rng.choice(len(row), slots, replace=False)
        row[at] = row[np.roll(at, 1)]
    return new


def table_line(ranks: int, carrier: str, halves: int, buffers: int) -> str:
    size = 288 // ranks
    rows = share_memory(Budget(), V3_ROW, size, halves=halves, buffers=buffers)
    before = (halves * size * V3_ROW + 2 * (64 << 20)) / 2**20
    now = (halves * rows.staged + buffers * rows.sent) * V3_ROW / 2**20
    cells = [f"{ranks}", carrier, f"{before:,.0f} MiB", f"{now:.0f} MiB", f"{rows.staged}"]
    old = drawn(5, 256, 288, layers=58)
    for new in (changed(old, 23), drawn(6, 256, 288, layers=58)):
        way = [old, *hops(old, new, size, [rows.staged] * 58)]
        taken = sum((one != other).any(axis=1).astype(int) for one, other in pairwise(way))
        further = sum(int((one != other).sum()) for one, other in pairwise(way)) / (old != new).sum() - 1
        cells += [f"{taken.mean():.1f}, {taken.max()}", f"{further:.1%}".replace("%", " %")]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_the_table_of_the_docs(ranks: int) -> None:
    """Its numbers are those of today's code, and no rank has more than 256 MiB."""
    text = (Path(__file__).parents[2] / "docs/migration.md").read_text()
    for carrier, halves, buffers in (("NIXL, gloo", 2, 2), ("NCCL", 1, 1)):
        line = table_line(ranks, carrier, halves, buffers)
        assert line in text, line


def cycle(slots: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    old = np.arange(slots, dtype=np.int32)[None]
    return old, np.roll(old, 1)


def test_a_long_cycle_is_cut() -> None:
    """Eight experts without replicas go round four ranks of two: one hop where both slots fit, else pieces."""
    old, new = cycle(8)
    assert len(check(old, new, 2, [2])) == 1
    old, new = cycle(16)
    way = [old, *check(old, new, 4, [3])]
    refills = [int((one != other).sum()) for one, other in pairwise(way)]
    assert refills == [12, 8]  # 8 of 12 are final, in four pieces


def test_experts_of_one_rank_change_places() -> None:
    """Within one rank, where two rows are the least that gets on."""
    for size in (2, 3, 7):
        old, new = cycle(size)
        assert len(check(old, new, size, [2])) == size - 1


def test_one_slot_a_rank_needs_one_row() -> None:
    """Ranks that hold one expert each exchange them at once."""
    assert least_rows(1) == 1
    old, new = cycle(6)
    assert len(check(old, new, 1, [1])) == 1


def test_nothing_to_do() -> None:
    """Equal placements: one hop, which changes nothing."""
    old, _ = cycle(4)
    found: list[Any] = hops(old, old, 2, [2])
    assert len(found) == 1
    assert np.array_equal(found[0], old)
