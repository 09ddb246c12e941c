"""NCCL's rules themselves: what is undefined or slow there is refused here. What keeps them: tests/migration."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import nccl_rules
import simulated_device as sim
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.recording.snapshot import snapshot
from nccl_rules import RuleBroken
from processes import Ranks


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


def fresh(backend: str = "nccl_rules") -> tuple[Any, torch.device]:
    device = nccl_rules.install()
    group = dist.new_group(backend=backend)
    assert dist.get_backend(group) == backend
    return group, device if backend == "nccl_rules" else torch.device("cpu")


def exchange(group: Any, device: torch.device) -> torch.Tensor:
    peer = 1 - dist.get_rank()
    sent, received = torch.full((3,), dist.get_rank(), device=device), torch.zeros(3, dtype=torch.int64, device=device)
    ops = [(dist.isend, sent), (dist.irecv, received)]
    for work in dist.batch_isend_irecv([dist.P2POp(how, rows, group=group, group_peer=peer) for how, rows in ops]):
        work.wait()
    return received


def used_well(backend: str) -> None:
    group, device = fresh(backend)
    total = torch.full((2,), dist.get_rank() + 1, device=device)
    dist.all_reduce(total, group=group)
    assert total.cpu().tolist() == [3, 3]
    nccl_rules.serving(False)
    assert exchange(group, device).cpu().tolist() == [1 - dist.get_rank()] * 3
    nccl_rules.serving()
    exchange(group, device)
    dist.reduce(total, dst=0, group=group)
    dist.barrier(group, device_ids=[0])


@pytest.mark.parametrize("backend", ["nccl_rules", "gloo_rules"])
def test_what_keeps_the_rules_works(two: Ranks, backend: str) -> None:
    """Values as gloo would bring them."""
    two.run(used_well, backend)


def begun_by_some() -> None:
    group, device = fresh()
    with pytest.raises(RuleBroken, match="before anything that all ranks enter"):
        exchange(group, device)


def met_while_serving() -> None:
    group, device = fresh()
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    nccl_rules.serving()
    with pytest.raises(RuleBroken, match="while serving"):
        exchange(group, device)


def two_threads() -> None:
    group, device = fresh()
    work = dist.all_reduce(torch.zeros(1, device=device), group=group, async_op=True)
    found: list[BaseException] = []

    def other() -> None:
        try:
            dist.all_reduce(torch.zeros(1, device=device), group=group)
        except RuleBroken as error:
            found.append(error)

    thread = threading.Thread(target=other, name="second")
    thread.start()
    thread.join()
    work.wait()
    assert "thread second begins while another's" in str(found[0])


def barrier_anywhere() -> None:
    group, _ = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the same
        with pytest.raises(RuleBroken, match="barrier without a device"):
            dist.barrier(group)


def host_waits() -> None:
    group, device = fresh()
    work = dist.all_reduce(torch.zeros(1, device=device), group=group, async_op=True)
    with pytest.raises(RuleBroken, match="time limit"):
        work.wait(timedelta(seconds=1))
    work.wait()
    with pytest.raises(RuleBroken, match="a tensor on cpu"):
        dist.all_reduce(torch.zeros(1), group=group)


@pytest.mark.parametrize("what", [begun_by_some, met_while_serving, two_threads, barrier_anywhere, host_waits])
def test_what_breaks_them_is_refused(two: Ranks, what: Any) -> None:
    """Each of them, by name."""
    two.run(what)


def silent_peer() -> None:
    """Rank 1 does not send: the other's stream stops, and goes on when the group is aborted."""
    group, device = fresh()
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    nccl_rules.patience(0.2)
    if dist.get_rank() == 0:
        exchange(group, device)
        event = torch.accelerator.current_stream().record_event()
        assert not any(event.query() for _ in range(2 * sim.LAG))
        with pytest.raises(RuntimeError, match="never comes"):
            event.synchronize()
        group.abort()
        assert any(event.query() for _ in range(2 * sim.LAG))
        with pytest.raises(RuntimeError, match="aborted"):
            dist.all_reduce(torch.zeros(1, device=device), group=group)
    dist.barrier()


def test_a_message_that_does_not_come_stops_the_stream(two: Ranks) -> None:
    """As on a GPU, nobody is told: only events that are never reached."""
    two.run(silent_peer)


def window_ends() -> None:
    group, device = fresh()
    dist.all_reduce(torch.zeros(1, device=device), group=group)
    shape = {"num_layers": 2, "num_experts": 4, "top_k": 2, "max_tokens": 8, "sample_rows": 8}
    recorder = Recorder(**shape, device=device, num_ubatches=1)
    recorder.load.fill_(dist.get_rank() + 1)
    statistics = snapshot(recorder, group, 1, [0, 1])
    if statistics is not None:
        assert statistics.load.tolist() == [[3] * 4] * 2


def test_a_snapshot_keeps_them(two: Ranks) -> None:
    """On the group that rows travel on, which all ranks have entered before."""
    two.run(window_ends)
