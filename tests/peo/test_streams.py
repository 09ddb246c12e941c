"""Streams and events of a schedule, as on a device: CUDA's classes are replaced by ones that write down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eplb_plugin.peo.ops import Op
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.streams import CudaStreams, InOrder


class Device:
    """done: (stream, what) in the order of launch; made: streams and events that exist."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self.made = 0
        self.capture = self.stream("capture")
        self.current = self.capture
        patch.setattr(torch.cuda, "Stream", lambda device: self.stream("gemm"))
        patch.setattr(torch.cuda, "Event", self.event)
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "stream", self.on)

    def stream(self, name: str) -> Any:
        self.made += 1
        return SimpleNamespace(name=name, wait_event=lambda event: self.done.append((name, f"wait {event.number}")))

    def event(self) -> Any:
        self.made += 1
        event = SimpleNamespace(number=self.made)
        event.record = lambda stream: self.done.append((stream.name, f"record {event.number}"))
        return event

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_op_runs_on_its_stream_between_its_events(device: Device, number: int):
    made = make_schedule(f"overlap-{number}", num_rounds=2, num_local_experts=4, num_device_sms=78)
    streams = CudaStreams(made, SimpleNamespace(get_comm_stream=lambda: device.stream("comm")), torch.device("cuda"))
    exist = device.made
    names = {"main": "capture", "comm": "comm", "gemm": "gemm"}
    for _ in range(2):  # layers share streams and events
        device.done.clear()
        streams.begin()
        ids: dict[str, str] = {}
        for op in made:
            mark = len(device.done)
            with streams.launch(op):
                assert device.current.name == names[op.stream]
                device.done.append((device.current.name, "op"))
            seen = device.done[mark:]
            assert {stream for stream, _ in seen} == {names[op.stream]}
            what = [word for _, word in seen]
            assert what[: len(op.waits)] == [f"wait {ids[event]}" for event in op.waits]
            assert what[len(op.waits)] == "op"
            if op.records:
                ids[op.records] = what[-1].split()[1]
                assert what[-1].startswith("record ")
            assert len(what) == len(op.waits) + 1 + bool(op.records)
        assert device.current is device.capture
    assert device.made == exist  # nothing is made while a graph is captured
    assert len(set(ids.values())) == len(ids)


def test_two_ops_in_one_launch_wait_before_and_record_after_both(device: Device):
    up = Op("gemm up", "gemm", 10, 0, 1, (0, 4), waits=("received 0",))
    down = Op("gemm down", "gemm", 10, 0, 1, (0, 4), records="computed 0")
    recv = Op("dispatch recv", "main", 10, 0, 1, (0, 4), records="received 0")
    streams = CudaStreams([recv, up, down], None, torch.device("cuda"))  # type: ignore[arg-type]
    streams.begin()
    with streams.launch(recv):
        pass
    with streams.launch(up, down):
        device.done.append(("gemm", "both"))
    assert [word.split()[0] for stream, word in device.done if stream == "gemm"] == ["wait", "both", "record"]


def test_an_op_before_its_events_is_a_mistake_of_the_executor():
    streams = InOrder()
    streams.begin()
    op = Op("gemm up", "gemm", 10, 0, 1, (0, 4), waits=("received 0",))
    with pytest.raises(AssertionError, match="is launched before"), streams.launch(op):
        pass
