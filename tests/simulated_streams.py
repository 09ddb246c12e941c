"""Streams and events of a simulated accelerator."""

from __future__ import annotations

from typing import Any

import torch

from simulated_counts import asked, check_thread, counts, thread, wait

LAG = 2  # questions to an event before it says yes


class Stream:
    """Work is over when it is launched; what crosses to the host arrives with the event that is recorded after it."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.ahead: list[tuple[torch.Tensor, torch.Tensor]] = []  # (host memory, what arrives there)
        self.sources: list[tuple[torch.Tensor, torch.Tensor]] = []  # (pinned memory, what it held)
        self.device_index = 0

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        wait("stream")
        self.arrive(len(self.ahead), len(self.sources))

    def query(self) -> bool:
        return not self.ahead

    def arrive(self, ahead: int, sources: int) -> None:
        for target, value in self.ahead[:ahead]:
            with torch.inference_mode(target.is_inference()):
                target.copy_(value)
        for source, held in self.sources[:sources]:
            if not torch.equal(source, held):
                counts.faults.append(f"pinned memory {list(source.shape)} was written before its copy was over")
        del self.ahead[:ahead], self.sources[:sources]

    def __enter__(self) -> Stream:
        self._before = current_stream()
        thread.stream, thread.has_device = self, True  # torch sets the device with the stream
        return self

    def __exit__(self, *_: object) -> None:
        thread.stream = self._before


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self._stream: Stream | None = None
        self._asked = 0

    def record(self, stream: Stream | None = None) -> None:
        check_thread("record")
        self._stream = stream or current_stream()
        self._marks = len(self._stream.ahead), len(self._stream.sources)
        self._asked = 0

    def query(self) -> bool:
        goes_on = asked()
        check_thread("query")
        self._asked += 1
        if self._asked > LAG and goes_on:
            self._arrive()
            return True
        return self._stream is None

    def wait(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None:
        check_thread("synchronize")
        wait("event")
        self._arrive()

    def _arrive(self) -> None:
        if self._stream is not None:
            self._stream.arrive(*self._marks)
            self._stream = None


_default = Stream()


def current_stream(device: Any = None) -> Stream:
    found: Stream = getattr(thread, "stream", _default)
    return found
