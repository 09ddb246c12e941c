"""Replays of a captured pass follow what is filled in between them."""

from __future__ import annotations

import pytest

from processes import Ranks
from simulated_checks import outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Nothing is found."""
    ((status, detail, _),) = device.run(outcome, "replays")
    assert (status, detail) == ("ok", "")


def tables_stay(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.dispatch.kernels import CoverTables

    put = CoverTables.put
    on_host = lambda self: self.tensors()[0].device.type == "cpu"  # noqa: E731
    patch.setattr(CoverTables, "put", lambda self, *args: put(self, *args) if on_host(self) else None)


def test_it_fails_where_something_is_broken(device: Ranks) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "replays", tables_stay)
    assert status == "failed"
    assert "slots of 1 tokens in turn 0" in detail
