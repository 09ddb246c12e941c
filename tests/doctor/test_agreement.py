"""Windows are summed exactly, and votes need two ranks."""

from __future__ import annotations

from typing import Any

import pytest

from processes import Ranks
from simulated_checks import outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Nothing is found."""
    ((status, detail, _),) = device.run(outcome, "windows")
    assert (status, detail) == ("ok", "")


def a_window_counts_twice(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.doctor import agreement

    def twice(*args: Any) -> Any:
        found = snapshot(*args)
        found.load[:] *= 2
        return found

    snapshot = agreement.snapshot
    patch.setattr(agreement, "snapshot", twice)


def test_it_fails_where_something_is_broken(device: Ranks) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "windows", a_window_counts_twice)
    assert status == "failed"
    assert "window over nccl_rules: totals" in detail
