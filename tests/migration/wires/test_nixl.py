"""NIXL between real processes: what a message that comes late, or not as agreed, cannot do. (Rows: test_shuffle.)"""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin import PluginError, Topology
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.wires.base import Wires
from eplb_plugin.migration.wires.nixl import Nixl, NixlWires
from expert_models import NO_NIXL, Model, groups, nixl
from processes import Ranks, run_ranks

pytestmark = NO_NIXL
TOPOLOGY = Topology(1, 2, 3)
NOTHING = torch.empty(0, dtype=torch.uint8)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(TOPOLOGY.num_ranks) as ranks:
        yield ranks


def connected(seconds: float, data: Nixl | None = None) -> Wires:
    """Collective: as a Shuffler makes them, after the first message of every pair."""
    placed = np.arange(TOPOLOGY.num_slots, dtype=np.int32)[None]
    own, votes = groups("nixl")
    model = Model(placed, TOPOLOGY.slots_per_rank)
    wires = model.shuffler(TOPOLOGY, data or own, votes, Budget(transfer_seconds=seconds)).wires
    assert isinstance(wires, NixlWires)
    assert wires.background
    wires.staging.zero_()
    return wires


def given_up() -> None:
    """Rank 1 sends when rank 0 has stopped waiting for it."""
    wires = connected(seconds=0.3)
    place = wires.staging[0, :64]
    if dist.get_rank() == 0:
        with pytest.raises(TimeoutError, match="rank 1: packed 2: nothing in"):
            wires.start(1, wires.outgoing[0, :64], place)
    dist.barrier()
    if dist.get_rank() == 1:
        message = wires.outgoing[0, :64].fill_(7)
        flight = wires.start(0, message, place)
        with pytest.raises(TimeoutError, match="rank 0: read 2"):
            wires.wait(flight)
    else:
        with pytest.raises(TimeoutError, match="rank 1: packed 3"):
            wires.start(1, NOTHING, place)
    dist.barrier()
    assert not place.any()  # nobody else can write there


def test_a_message_that_was_given_up_is_not_taken_for_the_next(two: Ranks) -> None:
    """Nor does it change the memory that it was meant for."""
    two.run(given_up)


def stopped_while_read() -> None:
    """Rank 1 is stopped before rank 0 reads its message, and goes on after rank 0 has given up."""
    os.environ["UCX_TLS"] = "tcp"  # through shared memory, a stopped rank can be read
    pids = [0] * TOPOLOGY.num_ranks
    dist.all_gather_object(pids, os.getpid())
    wires = connected(seconds=0.5)
    if dist.get_rank() == 1:
        wires.start(0, wires.outgoing[0, :64].fill_(7), NOTHING)
        dist.barrier()
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        dist.barrier()
        while Path(f"/proc/{pids[1]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        flight = wires.start(1, NOTHING, wires.staging[0, :64])
        with pytest.raises(TimeoutError, match="reading message 2 of rank 1"):
            wires.wait(flight)
        memory = weakref.ref(wires.staging)
        del wires, flight
        gc.collect()
        os.kill(pids[1], signal.SIGCONT)
        while not memory()[0, 63]:  # type: ignore[index]  # the bytes come after all, and hit nothing else
            time.sleep(0.01)
    dist.barrier()


def test_memory_that_a_lost_read_may_write_is_kept() -> None:
    """Whoever drops the wires: what comes late does not land in memory that is something else by then."""
    run_ranks(TOPOLOGY.num_ranks, stopped_while_read)


def of_another_size() -> None:
    wires = connected(seconds=5.0)
    if dist.get_rank() == 0:
        wires.start(1, wires.outgoing[0, :64], NOTHING)
    else:
        with pytest.raises(RuntimeError, match="message 2 of rank 0 has 64 bytes, expected 48"):
            wires.start(0, NOTHING, wires.staging[0, :48])
        assert not wires.staging.any()
    dist.barrier()


def test_a_message_of_another_size_is_not_read(two: Ranks) -> None:
    """Ranks that disagree about a message find out before any byte has moved."""
    two.run(of_another_size)


class Faulty:
    """A real agent that fails on rank 1 in one thing."""

    def __init__(self, agent: Any, what: str) -> None:
        self.agent, self.what = agent, what

    def __getattr__(self, name: str) -> Any:
        if name == self.what and dist.get_rank() == 1:
            raise OSError("no device")
        return getattr(self.agent, name)


def refused(what: str) -> str:
    real = nixl(groups()[0])
    with pytest.raises(PluginError) as error:
        connected(1.0, Nixl(lambda name: Faulty(real.agent(name), what), real.group))
    return str(error.value)


@pytest.mark.parametrize("what", ["register_memory", "add_remote_agent"])
def test_a_rank_without_nixl_refuses_the_start_on_all(two: Ranks, what: str) -> None:
    """One line, the same on every rank: nobody waits for the one that failed."""
    lines = set(two.run(refused, what))
    assert len(lines) == 1
    assert lines.pop().startswith("NIXL on rank 1: found OSError: no device, expected an agent that reaches all others")


def used_up() -> int:
    """Threads and files that four more wires left behind."""

    def held() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/task")) + len(os.listdir("/proc/self/fd"))

    def once() -> None:
        wires = connected(seconds=20.0)
        peer = 1 - dist.get_rank()
        wires.wait(wires.start(peer, wires.outgoing[0, :64], wires.staging[0, :64]))
        dist.barrier()

    once()
    before = held()
    for _ in range(4):
        once()
    return held() - before


def test_wires_that_are_dropped_leave_nothing(two: Ranks) -> None:
    """The agent ends with them, its threads and sockets are gone."""
    assert max(two.run(used_up)) <= 0
