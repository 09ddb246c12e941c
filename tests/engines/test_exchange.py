"""The exchange of a step's counts over real processes: each knows the whole step, or ends."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin import Placement, Plan, Topology, route, route_step
from eplb_plugin.dispatch.exact.kernels import choose, count
from eplb_plugin.dispatch.exact.tables import ExactTables, exact_maps
from eplb_plugin.engines.device_tables import owners_of
from eplb_plugin.engines.exchange import GroupExchange, no_exchange
from eplb_plugin.migration.shuffle import EXIT_CODE
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from processes import Ranks, run_ranks
from recorded import counters

EXPERTS, SLOTS, TOP_K, STEPS, LARGE, CPU = 12, 16, 3, 24, 5, torch.device("cpu")


def placed(seed: int, rule: str) -> Plan:
    """A placement on the group's ranks, each of which is a node."""
    ranks, rng = dist.get_world_size(), np.random.default_rng(seed)
    slots = rng.permutation([*range(EXPERTS), *rng.integers(EXPERTS, size=SLOTS - EXPERTS)])
    return plan_of(Placement(slots[None].astype(np.int32)), Topology(ranks, 1, SLOTS // ranks), rule)


def batch(step: int, source: int) -> np.ndarray:
    """What a source routes in a step: many tokens, few, or the one of a dummy batch."""
    rng = np.random.default_rng([step, source])
    tokens = (1, LARGE - 1, LARGE, 40)[rng.integers(4)]
    return np.argsort(rng.random((tokens, EXPERTS)) ** (1 + np.arange(EXPERTS)), axis=1)[:, :TOP_K].copy()


def serve(group_size: int, rule: str) -> tuple[int, list[bytes]]:
    """Large steps and small ones, with a new placement now and then; the number of large ones, and all slots."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    source, plan, large, seen = rank // group_size, placed(0, rule), 0, []
    sources = [ExactTables(plan, owners_of(first, group_size), CPU, 0.0) for first in range(0, ranks, group_size)]
    layers = [tables.layer(0) for tables in sources]
    exchange = no_exchange if group_size == ranks else GroupExchange(dist.group.WORLD, group_size, 60.0)
    nothing = counters(Recorder(1, EXPERTS, TOP_K, 64, 4, CPU), 0, enabled=False)
    for step in range(STEPS):
        if step % 7 == 6:
            plan = placed(step, rule)
            for tables in sources:
                tables.put(exact_maps(plan, [0]), [0])
        ids = [batch(step, one) for one in range(len(sources))]
        if max(map(len, ids)) < LARGE:  # no word is exchanged, and nobody waits for one
            seen.append(route(ids[source], rank - rank % group_size, plan, 0).tobytes())
            continue
        large += 1
        mine = torch.from_numpy(ids[source])
        told = exchange(count(mine, layers[source])).clone()
        expected = [count(torch.from_numpy(one), layer).clone() for one, layer in zip(ids, layers, strict=True)]
        assert torch.equal(told, torch.stack(expected))
        slots = choose(mine, layers[source], told, nothing).numpy()
        seen.append(slots.tobytes())
        if group_size == 1:
            owners = np.repeat(np.arange(ranks), [len(one) for one in ids])
            whole = route_step(np.concatenate(ids), owners, plan, 0)
            np.testing.assert_array_equal(slots, whole[owners == rank])
    return large, seen


@pytest.mark.parametrize(
    ("ranks", "group_size", "rule"), [(2, 1, "hash"), (4, 1, "cover"), (4, 2, "cover"), (2, 2, "hash")]
)
def test_every_rank_knows_the_whole_step(ranks: int, group_size: int, rule: str) -> None:
    """Busy ranks and idle ones, one row per token-owner group, small steps in between, placements that change: what is
    gathered is what each source counts, all ranks together are `route_step`, and owners choose alike."""
    found = run_ranks(ranks, serve, group_size, rule, timeout=300)
    assert {large for large, _ in found} == {found[0][0]}
    assert 0 < found[0][0] < STEPS or group_size == ranks
    for rank, (_, seen) in enumerate(found):
        assert seen == found[rank - rank % group_size][1]


def failing(sign: signal.Signals, seconds: float) -> None:
    """Rank 1 is struck before its second exchange."""
    exchange, mine = GroupExchange(dist.group.WORLD, 1, seconds), torch.ones(6, dtype=torch.int32)
    assert exchange(mine).sum() == 6 * dist.get_world_size()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), sign)
    exchange(mine)


@pytest.mark.parametrize(("sign", "seconds"), [(signal.SIGKILL, 60.0), (signal.SIGSTOP, 0.5)])
def test_a_rank_that_ends_or_stops_ends_the_others(sign: signal.Signals, seconds: float) -> None:
    """At once, or after the patience that was given; nobody hangs, and nobody goes on."""
    with Ranks(3) as ranks:
        ranks.start(failing, sign, seconds)
        assert ranks.answers({0, 2}) == [(None, EXIT_CODE)] * 2
