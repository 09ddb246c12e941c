"""Rows of experts on the device and on the host: read, sealed and written alike."""

from __future__ import annotations

from typing import Any

import pytest

from processes import Ranks
from simulated_checks import Fault, outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Nothing is found."""
    ((status, detail, _),) = device.run(outcome, "rows")
    assert (status, detail) == ("ok", "")


def indices_stay_on_the_host(patch: pytest.MonkeyPatch) -> None:
    """As the first release had it: no expert could have been moved on a GPU."""
    import torch

    from eplb_plugin.migration.layout import ExpertRows

    def read(self: ExpertRows, slots: torch.Tensor, rows: torch.Tensor) -> None:
        for matrix, part in self._parts(rows):
            torch.index_select(matrix, 0, slots, out=part)

    patch.setattr(ExpertRows, "read", read)


def a_byte_is_flipped(patch: pytest.MonkeyPatch) -> None:
    """On the device alone."""
    from eplb_plugin.migration.layout import ExpertRows

    write = ExpertRows.write

    def wrong(self: ExpertRows, slots: Any, rows: Any) -> None:
        changed = rows.clone()
        if self.matrices[0].device.type != "cpu":
            changed[-1, 1] ^= 1
        write(self, slots, changed)

    patch.setattr(ExpertRows, "write", wrong)


def seals_see_nothing(patch: pytest.MonkeyPatch) -> None:
    import torch

    from eplb_plugin.doctor import rows

    patch.setattr(rows, "broken", lambda rows, identity: torch.zeros(len(rows), dtype=torch.bool))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (indices_stay_on_the_host, "found sim and cpu"),
        (a_byte_is_flipped, "bf16: w13 after a write from "),
        (seals_see_nothing, "rows whose seal does not fit: found [], expected [1]"),
    ],
)
def test_it_fails_where_something_is_broken(device: Ranks, fault: Fault, said: str) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "rows", fault)
    assert status == "failed"
    assert said in detail
