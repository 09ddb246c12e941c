"""Where the ops of a schedule are launched: on CUDA streams with events between them, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .ops import Op, Schedule, Stream


class InOrder:
    """Everything runs when it is launched. An op whose events are not recorded yet is a mistake of the executor."""

    def __init__(self) -> None:
        self._recorded: set[str] = set()

    def begin(self) -> None:
        """A layer begins."""
        self._recorded.clear()

    @contextmanager
    def launch(self, *ops: Op) -> Iterator[None]:
        """What is launched inside is these ops, which follow one another on one stream."""
        for op in ops:
            missing = set(op.waits) - self._recorded
            assert not missing, f"{op} is launched before {sorted(missing)}"
        yield
        self._recorded |= {op.records for op in ops if op.records}


class CudaStreams(InOrder):
    """`main` is the stream that is current when a layer begins, so under capture it is the capture stream; the others
    fork from it by the schedule's events and are joined to it again.

    Streams and events are made once, outside of any capture: many layers with streams of their own would become as many
    branches of a graph.
    """

    def __init__(self, schedule: Schedule, buffer: Any, device: torch.device) -> None:
        super().__init__()
        self._streams: dict[Stream, torch.cuda.Stream] = {"gemm": torch.cuda.Stream(device)}  # type: ignore[no-untyped-call]
        if any(op.stream == "comm" for op in schedule):
            self._streams["comm"] = buffer.get_comm_stream()  # where the hooks of the patched buffer launch
        names = [op.records for op in schedule if op.records]
        self._events = {name: torch.cuda.Event() for name in names}  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        super().begin()
        self._streams["main"] = torch.cuda.current_stream()

    @contextmanager
    def launch(self, *ops: Op) -> Iterator[None]:
        stream = self._streams[ops[0].stream]
        with super().launch(*ops), torch.cuda.stream(stream):
            for op in ops:
                for event in op.waits:
                    stream.wait_event(self._events[event])
            yield
            for op in ops:
                if op.records:
                    self._events[op.records].record(stream)
