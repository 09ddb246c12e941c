"""Experts change places under a forward pass that is replayed."""

from __future__ import annotations

import pytest

from processes import Ranks
from simulated_checks import Fault, outcome


def test_it_passes_on_a_device_that_works(device: Ranks) -> None:
    """Over the host's memory and the device's, in steps."""
    ((status, detail, figures),) = device.run(outcome, "moves")
    assert (status, detail) == ("ok", "")
    assert figures["steps, nccl_rules"] > 0
    assert figures["steps, gloo"] > 0


def rows_stay_in_staging(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.migration.layout import ExpertRows

    patch.setattr(ExpertRows, "write", lambda self, slots, rows: None)


def a_step_waits(patch: pytest.MonkeyPatch) -> None:
    import torch

    from eplb_plugin.migration.shuffle import Shuffler

    step = Shuffler.step
    patch.setattr(Shuffler, "step", lambda self: (torch.accelerator.synchronize(), step(self))[1])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (rows_stay_in_staging, "weights read by the forward pass"),
        (a_step_waits, "the host waited for the device"),
    ],
)
def test_it_fails_where_something_is_broken(device: Ranks, fault: Fault, said: str) -> None:
    """With a line that says what."""
    ((status, detail, _),) = device.run(outcome, "moves", fault)
    assert status == "failed"
    assert said in detail
