"""What a host thread asks of a device, on the simulated one, where waits and kinds of copies are counted."""

from __future__ import annotations

import threading

import torch

import simulated_device as sim
from eplb_plugin.devices import host_memory, sent, work_on
from processes import run_ranks


def test_on_a_cpu_nothing_is_copied() -> None:
    """The values themselves, and memory as it is."""
    host, cpu = torch.arange(3), torch.device("cpu")
    assert sent(host, cpu) is host
    work_on(cpu)
    memory = host_memory(2, 3, dtype=torch.uint8, device=cpu)
    assert not memory.is_pinned()
    assert memory.tolist() == [[0, 0, 0], [0, 0, 0]]


def asked() -> None:
    device = sim.install()
    ours = torch.arange(4, device=device)
    assert sent(ours, device) is ours
    sim.counts.reset()
    there = sent(torch.arange(4), device)
    assert there.device == device
    again = sent(torch.arange(4).pin_memory(), device)
    assert (sim.counts.pinned, sim.counts.pageable, sim.counts.stops) == (2, 0, 0)
    memory = host_memory(4, dtype=torch.int64, device=device)
    assert memory.device.type == "cpu"
    memory.copy_(ours, non_blocking=True)
    assert sim.counts.stops == 0
    torch.accelerator.synchronize()
    assert memory.tolist() == there.tolist() == again.tolist() == [0, 1, 2, 3]
    seen: list[int] = []

    def work() -> None:
        work_on(torch.device(device.type, 0))
        seen.append(torch.accelerator.current_device_index())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_nobody_waits_for_values_that_cross() -> None:
    """Through pinned memory both ways, whether the caller's was pinned or not."""
    run_ranks(1, asked)
