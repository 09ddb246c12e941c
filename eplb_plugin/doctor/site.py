"""Where checks run: a device, the sizes that fit it, and what can be seen of it from outside."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

import torch


class Skipped(Exception):
    """This site cannot show what a check is about; the message says why."""


class Site:
    """Any device, with nothing but what every device has: no graphs, no streams, no counters.

    full: sizes of real models; otherwise small ones that a CPU has done in a second. carriers: backends of torch's
    process groups that rows may travel on.
    """

    carriers: tuple[str, ...] = ("gloo",)
    graphs = False

    def __init__(self, device: torch.device, full: bool = False) -> None:
        self.device, self.full = device, full

    @property
    def free(self) -> int | None:
        """Bytes of the device's memory, where somebody knows."""
        return None

    @property
    def allocated(self) -> int | None:
        """Bytes of it that live tensors have, likewise."""
        return None

    def pick(self, full: int, small: int) -> int:
        return full if self.full else small

    def capture(self, action: Callable[[], object]) -> Callable[[], object]:
        """What repeats the action: its captured graph where there are graphs. It runs once before, to be compiled."""
        action()
        return action

    def beside(self, *actions: Callable[[], object]) -> None:
        """The actions, each on a stream of its own where there are streams; done on return."""
        for action in actions:
            action()

    def synchronize(self) -> None:
        """Until all that was launched is done."""

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        """Of the device for one run; the action has run once before."""
        action()
        self.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            action()
        self.synchronize()
        return (time.perf_counter() - began) / repeats

    def no_waits(self) -> AbstractContextManager[None]:
        """An error for whatever waits for the device on the host."""
        raise Skipped(f"nobody waits for a {self.device.type}")

    def memory(self, action: Callable[[], object]) -> int:
        """Most bytes of the device that an action holds at once."""
        raise Skipped(f"the memory of a {self.device.type} is not counted")

    def spin(self, seconds: float) -> None:
        """Keep the current stream busy, and not the host."""
        raise Skipped(f"a {self.device.type} has no stream to keep busy")

    def refuse_no_triton(self) -> None:
        """Raises Skipped where no Triton kernel can be launched."""
        if find_spec("triton") is None:
            raise Skipped("Triton is not installed")


class CudaSite(Site):
    """One GPU of this process."""

    carriers = ("gloo", "nccl")
    graphs = True

    def __init__(self, index: int = 0) -> None:
        super().__init__(torch.device("cuda", index), full=True)
        torch.cuda.set_device(self.device)

    @property
    def free(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    @property
    def allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def capture(self, action: Callable[[], object]) -> Callable[[], object]:
        action()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            action()
        return graph.replay

    def beside(self, *actions: Callable[[], object]) -> None:
        self.synchronize()
        for action in actions:
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                action()
        self.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        action()
        began, ended = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(repeats):
            action()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3 / repeats

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def memory(self, action: Callable[[], object]) -> int:
        gc.collect()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before

    def spin(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * 2e9))  # type: ignore[no-untyped-call]  # cycles, of a clock below 2 GHz
