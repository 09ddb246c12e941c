"""The order in which the background thread's device work stands to the engine's. No device: who calls what, when."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eplb_plugin.migration.background import Background


def test_on_a_cpu_there_is_nothing_to_order() -> None:
    """Another thread, and no stream is asked for (there is none)."""
    thread = Background(torch.device("cpu"))
    for submit in (thread.submit, thread.beside):
        ran = submit(lambda one: (one, threading.current_thread().name), 5).result()
        assert ran[0] == 5
        assert ran[1].startswith("eplb-migration")


def test_work_begins_after_the_engines_and_is_done_with_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked by the caller when it submits, waited for before the action, which is complete before its result is."""
    calls: list[str] = []
    caller = threading.current_thread()

    def say(what: str) -> None:
        calls.append(f"{what} {'here' if threading.current_thread() is caller else 'there'}")

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == torch.device("cuda", 3)

        def __enter__(self) -> None:
            say("enter")

        def __exit__(self, *_: object) -> None:
            say("leave")

        def synchronize(self) -> None:
            say("own work is done")

    def record_event() -> Any:
        say("mark")
        return SimpleNamespace(synchronize=lambda: say("the engine's work is done"))

    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: SimpleNamespace(record_event=record_event))
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: say(f"set {device}"))
    Background(torch.device("cuda", 3)).beside(say, "act").result()
    assert calls == [
        "mark here",
        "set cuda:3 there",
        "enter there",
        "the engine's work is done there",
        "act there",
        "own work is done there",
        "leave there",
    ]
