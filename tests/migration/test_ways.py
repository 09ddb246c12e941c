"""From one placement to another: every layer gets there in hops that fit, and ranks can tell whether they agree."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_plugin import PluginError, Topology
from eplb_plugin.migration.layout import ExpertRows, expert_rows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.ways import Way, Ways
from eplb_plugin.migration.wires.group import GroupWires
from expert_models import Log

PLACES = Topology(1, 2, 4)


def layers(count: int, width: int = 6) -> list[ExpertRows]:
    return [expert_rows({"w13_weight": torch.zeros(4, width)}, 4) for _ in range(count)]


def rotated(count: int, by: int) -> NDArray[np.int32]:
    return np.stack([np.roll(np.arange(8, dtype=np.int32), by) for _ in range(count)])


def find(
    group: Any, budget: Budget, old: Any, new: Any, rows: list[ExpertRows] | None = None, serial: int = 1
) -> tuple[Ways, Way]:
    rows = rows or layers(len(old))
    ways = Ways(rows, PLACES, GroupWires(group, rows, budget), budget)
    return ways, ways.between(old, new, rows, serial)


def scarce(rows: list[ExpertRows]) -> Budget:
    """Memory for two rows in each half of the staging, and one in each buffer."""
    return Budget(staging_bytes=6 * rows[0].row_bytes)


def test_one_hop_where_all_rows_fit(alone: dist.ProcessGroup) -> None:
    """Layers without a change are in no batch."""
    old, new = rotated(4, 0), rotated(4, 1)
    new[2] = old[2]
    way = find(alone, Budget(layers_per_step=2), old, new)[1]
    assert [batch.layers for batch in way.batches] == [[0], [1], [3]]  # by default a layer's bytes a step
    assert all(np.array_equal(batch.placed, new) for batch in way.batches)
    assert len(way.schedules) == 1


def test_all_first_hops_come_before_any_second(alone: dist.ProcessGroup) -> None:
    """Memory for two rows: every layer passes placements that hold all experts, in order, and ends at the new one."""
    old, new, rows = rotated(3, 0), rotated(3, 4), layers(3)
    way = find(alone, scarce(rows), old, new, rows)[1]
    passed: dict[int, list[Any]] = defaultdict(list)
    number = []
    for batch in way.batches:
        for layer in batch.layers:
            number.append(len(passed[layer]))
            passed[layer].append(batch.placed[layer])
            assert batch.transfer.plan.staged_rows[layer].max() <= 2
    assert len(way.schedules) > 1
    assert number == sorted(number)
    for layer, steps in passed.items():
        assert all(sorted(step) == list(range(8)) for step in steps)
        assert np.array_equal(steps[-1], new[layer])
        assert all(not np.array_equal(one, other) for one, other in pairwise([old[layer], *steps]))


def test_equal_digests_mean_the_same_moves_of_like_tensors(alone: dist.ProcessGroup) -> None:
    """Placements, tensors, budget and the migration's number are in it, and nothing of the rank."""
    old, new, budget = rotated(2, 0), rotated(2, 1), Budget()
    first = find(alone, budget, old, new)[1].digest
    assert find(alone, budget, old.copy(), new.copy())[1].digest == first
    others = [
        find(alone, budget, old, rotated(2, 2)),
        find(alone, budget, rotated(2, 3), new),
        find(alone, budget, old, new, layers(2, width=8)),
        find(alone, budget, old, new, serial=2),
        find(alone, replace(budget, layers_per_step=3), old, new),
    ]
    digests = {way.digest for _, way in others} | {first}
    assert len(digests) == 6
    assert all(0 <= digest < 1 << 56 for digest in digests)  # a vote also carries the negative one


def test_a_placement_of_other_layers_is_refused(alone: dist.ProcessGroup) -> None:
    """One that fits itself but not what is to be moved."""
    with pytest.raises(PluginError, match="phy2log: found 3, expected 2 layers"):
        find(alone, Budget(), rotated(3, 0), rotated(3, 1), layers(2))


def test_the_first_rank_announces_what_moves(alone: dist.ProcessGroup) -> None:
    """Bytes between ranks of all hops together, without those that stay on a rank; nothing if nothing moves."""
    old, new, rows = rotated(2, 0), rotated(2, 3), layers(2, width=1 << 16)
    with Log() as log:
        ways, way = find(alone, scarce(rows), old, new, rows)
        ways.announce(way, serial=5)
        ways.announce(ways.between(old, old, rows, 6), serial=6)
    moved = sum(int((plan.source != plan.target).sum()) for plan in way.schedules) * rows[0].expert_bytes / 2**20
    assert moved >= 3.0  # of 256 KiB each: 6 experts of both layers change their rank, two stay on it
    assert len(log.lines) == 1
    assert log.lines[0].startswith(
        f"migration 5: 2 of 2 layers, at most {len(way.schedules)} hops each, {moved:.1f} MiB"
    )
    ways._wires.rank = 1
    with Log() as log:
        ways.announce(way, serial=5)
    assert log.lines == []
