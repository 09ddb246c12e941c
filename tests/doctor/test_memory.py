"""What the plugin holds of a device is what it says."""

from __future__ import annotations

import pytest

from processes import Ranks
from simulated_checks import outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Nothing is found."""
    ((status, detail, _),) = device.run(outcome, "memory")
    assert (status, detail) == ("ok", "")


def a_recorder_states_half(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.recording.recorder import Recorder

    nbytes = Recorder.nbytes
    patch.setattr(Recorder, "nbytes", lambda self: nbytes(self) // 2)


def test_it_fails_where_something_is_broken(device: Ranks) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "memory", a_recorder_states_half)
    assert status == "failed"
    assert "recorder: bytes allocated" in detail
