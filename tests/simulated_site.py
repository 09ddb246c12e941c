"""The doctor's checks on the simulated accelerator, whose counters stand for what CUDA's own would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import nccl_rules
import simulated_device as sim
import simulated_launch
from eplb_plugin.doctor.site import Site


class SimulatedSite(Site):
    """A capture is a run in which everything fails that would break a capture; a replay is another run."""

    carriers = ("gloo", "nccl_rules")
    graphs = True

    def __init__(self) -> None:
        super().__init__(nccl_rules.install())
        simulated_launch.install()

    def capture(self, action: Callable[[], object]) -> Callable[[], object]:
        action()
        with sim.capturing(pool=True):
            action()
        return action

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        before = sim.counts.stops
        yield
        if sim.counts.stops != before:
            raise RuntimeError(f"the host waited for the device: {dict(sim.counts.host_reads)}")

    @property
    def allocated(self) -> int:
        return sim.counts.allocated

    def memory(self, action: Callable[[], object]) -> int:
        before = sim.counts.peak = sim.counts.allocated
        action()
        return sim.counts.peak - before
