"""What an engine calls in every step waits for no device."""

from __future__ import annotations

import pytest

from processes import Ranks
from simulated_checks import outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Nothing is found."""
    ((status, detail, _),) = device.run(outcome, "waits")
    assert (status, detail) == ("ok", "")


def tables_come_from_pageable_memory(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.dispatch import kernels

    patch.setattr(kernels, "sent", lambda values, device: values.to(device))


def test_it_fails_where_something_is_broken(device: Ranks) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "waits", tables_come_from_pageable_memory)
    assert status == "failed"
    assert "the host waited for the device" in detail
