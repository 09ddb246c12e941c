"""The doctor's checks on the simulated accelerator: they pass there, and each fails where something is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from processes import run_ranks

CHECKS = ("rows", "moves", "replays", "waits", "windows", "memory", "captures")


def results(names: tuple[str, ...]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """On one rank: name -> status, detail, figures."""
    from eplb_plugin.doctor import single
    from eplb_plugin.doctor.checks import run_check
    from simulated_site import SimulatedSite

    site = SimulatedSite()
    found = [run_check(check, site) for check in single.CHECKS if check.name in names]
    return {one.name: (one.status, one.detail, one.figures) for one in found}


def test_checks_pass_on_a_device_that_works() -> None:
    """All that run no Triton kernel, over the host's memory and the device's; what a capture forbids is found."""
    (found,) = run_ranks(1, results, CHECKS, timeout=300)
    assert {name: (status, detail) for name, (status, detail, _) in found.items()} == dict.fromkeys(CHECKS, ("ok", ""))
    assert found["moves"][2]["steps, nccl_rules"] > 0
    assert found["captures"][2]["capture beside: nothing"] == "sound"
    assert "the host waited" in found["captures"][2]["capture beside: wait for an event"]


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


def rows_stay_in_staging(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.migration.layout import ExpertRows

    patch.setattr(ExpertRows, "write", lambda self, slots, rows: None)


def a_step_waits(patch: pytest.MonkeyPatch) -> None:
    import torch

    from eplb_plugin.migration.shuffle import Shuffler

    step = Shuffler.step
    patch.setattr(Shuffler, "step", lambda self: (torch.accelerator.synchronize(), step(self))[1])


def tables_stay(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.dispatch.kernels import CoverTables

    put = CoverTables.put
    on_host = lambda self: self.tensors()[0].device.type == "cpu"  # noqa: E731
    patch.setattr(CoverTables, "put", lambda self, *args: put(self, *args) if on_host(self) else None)


def tables_come_from_pageable_memory(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.dispatch import kernels

    patch.setattr(kernels, "sent", lambda values, device: values.to(device))


def a_recorder_states_half(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.recording.recorder import Recorder

    nbytes = Recorder.nbytes
    patch.setattr(Recorder, "nbytes", lambda self: nbytes(self) // 2)


def a_window_counts_twice(patch: pytest.MonkeyPatch) -> None:
    from eplb_plugin.doctor import agreement

    def twice(*args: Any) -> Any:
        found = snapshot(*args)
        found.load[:] *= 2
        return found

    snapshot = agreement.snapshot
    patch.setattr(agreement, "snapshot", twice)


def no_capture_works(patch: pytest.MonkeyPatch) -> None:
    from simulated_site import SimulatedSite

    def capture(self: SimulatedSite, action: Callable[[], object]) -> Callable[[], object]:
        return lambda: None

    patch.setattr(SimulatedSite, "capture", capture)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (indices_stay_on_the_host, "rows", "found sim and cpu"),
    (a_byte_is_flipped, "rows", "bf16: w13 after a write from "),
    (seals_see_nothing, "rows", "rows whose seal does not fit: found [], expected [1]"),
    (rows_stay_in_staging, "moves", "weights read by the forward pass"),
    (a_step_waits, "moves", "the host waited for the device"),
    (tables_stay, "replays", "slots of 1 tokens in turn 0"),
    (tables_come_from_pageable_memory, "waits", "the host waited for the device"),
    (a_window_counts_twice, "windows", "window over nccl_rules: totals"),
    (a_recorder_states_half, "memory", "recorder: bytes allocated"),
    (no_capture_works, "captures", "a capture beside a thread that rests: found "),
]


def with_faults() -> list[tuple[str, str]]:
    """On one rank: status and detail of the check that each fault is for."""
    found = []
    for fault, name, _ in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            status, detail, _ = results((name,))[name]
            found.append((status, detail))
    return found


def test_every_check_fails_where_something_is_broken() -> None:
    """With a line that says what."""
    (found,) = run_ranks(1, with_faults, timeout=300)
    for (fault, _, said), (status, detail) in zip(FAULTS, found, strict=True):
        assert (status, said in detail) == ("failed", True), f"{fault.__name__}: {status}, {detail}"
