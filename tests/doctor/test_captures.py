"""What a background thread may do while a graph is captured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from processes import Ranks
from simulated_checks import outcome


def test_what_a_capture_forbids_is_found(device: Ranks) -> None:
    """A thread that rests breaks none; one that waits for an event does, and the figures say so."""
    ((status, detail, figures),) = device.run(outcome, "captures")
    assert (status, detail) == ("ok", "")
    assert figures["capture beside: nothing"] == "sound"
    assert "the host waited" in figures["capture beside: wait for an event"]


def no_capture_works(patch: pytest.MonkeyPatch) -> None:
    from simulated_site import SimulatedSite

    def capture(self: SimulatedSite, action: Callable[[], object]) -> Callable[[], object]:
        return lambda: None

    patch.setattr(SimulatedSite, "capture", capture)


def test_it_fails_where_something_is_broken(device: Ranks) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "captures", no_capture_works)
    assert status == "failed"
    assert "a capture beside a thread that rests: found " in detail
