"""The simulated accelerator itself: values are right, and what a GPU refuses or waits for is seen."""

from __future__ import annotations

import threading

import pytest
import torch

import simulated_device as sim
from processes import run_ranks


def values() -> None:
    device = sim.install()
    host = torch.arange(24).reshape(4, 6)
    ours = host.to(device)
    assert ours.device == device
    assert ours[1:3, ::2].untyped_storage().data_ptr() == ours.untyped_storage().data_ptr()
    assert ours.view(torch.int32).shape == (4, 12)
    for one in (ours + 1, ours.t() @ ours, ours.sum(1), ours.float().softmax(0), torch.cat([ours, ours]), ours.triu(1)):
        assert one.device == device
    assert torch.equal((ours.t() * 2).cpu(), host.t() * 2)
    ours[2] = 0
    ours.index_copy_(0, torch.tensor([0]).to(device), ours[3:] * 10)
    ours.clamp_(max=200)
    assert ours.tolist()[0] == (host[3] * 10).clamp(max=200).tolist()
    assert torch.zeros(3, 2, dtype=torch.bool, device=device).any().item() is False
    module = torch.nn.Linear(3, 2).to(device)
    assert module(torch.ones(1, 3, device=device)).shape == (1, 2)


def mixes() -> None:
    device = sim.install()
    ours = torch.zeros(4, 2, device=device)
    with pytest.raises(RuntimeError, match="same device"):
        torch.index_select(ours, 0, torch.tensor([1]), out=torch.empty(1, 2, device=device))
    with pytest.raises(RuntimeError, match="same device"):
        ours + torch.ones(4, 2)
    assert (ours + torch.tensor(1.0)).cpu().sum() == 8  # a single value may come from the host, as on a GPU
    with pytest.raises((TypeError, RuntimeError)):
        ours.numpy()


def waits() -> None:
    device = sim.install()
    ours = torch.arange(4, device=device)
    sim.counts.reset()
    ours[0].item()
    torch.nonzero(ours)
    ours[ours > 1]
    assert sim.counts.host_reads.total() == 3, sim.counts.host_reads
    torch.arange(3).to(device, non_blocking=True)
    assert (sim.counts.pageable, sim.counts.pinned) == (1, 0)
    torch.arange(3).pin_memory().to(device, non_blocking=True)
    assert (sim.counts.pageable, sim.counts.pinned) == (1, 1)
    assert sim.counts.stops == 4


def arrivals() -> None:
    """A copy to pinned memory is there when its event is, no sooner."""
    device = sim.install()
    ours, host = torch.arange(4, device=device), torch.empty(4, dtype=torch.int64, pin_memory=True)
    host.copy_(ours, non_blocking=True)
    event = torch.accelerator.current_stream().record_event()
    ours.zero_()
    assert host.tolist() != [0, 1, 2, 3]
    assert not event.query()
    while not event.query():
        pass
    assert host.tolist() == [0, 1, 2, 3]
    assert sim.counts.host_waits == 0
    source = torch.arange(4).pin_memory()
    source.to(device, non_blocking=True)
    source.zero_()  # too early
    torch.accelerator.synchronize()
    assert len(sim.counts.faults) == 1


def threads() -> None:
    device = sim.install()

    def work(ready: bool) -> None:
        if ready:
            torch.accelerator.set_device_index(0)
        torch.zeros(2, device=device).add_(1)

    for ready, faults in ((True, 0), (False, 1)):
        thread = threading.Thread(target=work, args=(ready,))
        thread.start()
        thread.join()
        assert bool(sim.counts.faults) == bool(faults)


def captures() -> None:
    device = sim.install()
    ours, rows, index = torch.zeros(4, device=device), torch.ones(1, device=device), torch.tensor([1], device=device)
    with sim.capturing():
        ours.add_(1)
        ours.index_copy_(0, index, rows)
    for forbidden in (
        lambda: ours.sum().item(),
        lambda: ours + 1,  # allocates
        lambda: ours.copy_(torch.ones(4)),
        lambda: torch.accelerator.synchronize(),
    ):
        with sim.capturing(), pytest.raises(sim.CaptureError):
            forbidden()


def memory() -> None:
    device = sim.install()
    before = sim.counts.allocated
    ours = torch.zeros(1 << 20, dtype=torch.uint8, device=device)
    assert (1 << 20) <= sim.counts.allocated - before < (1 << 20) + 2048
    del ours
    assert sim.counts.allocated == before
    assert sim.counts.peak >= 1 << 20


@pytest.mark.parametrize("what", [values, mixes, waits, arrivals, threads, captures, memory])
def test_device(what) -> None:
    """It computes as the CPU does, and tells of everything that it was made to tell."""
    run_ranks(1, what)


def test_not_here() -> None:
    """pytest's own process never believes that it has an accelerator."""
    with pytest.raises(RuntimeError, match="child"):
        sim.install()
