"""One check of the doctor on the simulated accelerator, with a fault in it or without; run in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Fault = Callable[[pytest.MonkeyPatch], None]


def outcome(name: str, fault: Fault | None = None) -> tuple[str, str, dict[str, Any]]:
    """-> status, detail, figures. name: of the check."""
    from eplb_plugin.doctor import single
    from eplb_plugin.doctor.checks import run_check
    from simulated_site import SimulatedSite

    site = SimulatedSite()
    (check,) = (one for one in single.CHECKS if one.name == name)
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        found = run_check(check, site)
    return found.status, found.detail, found.figures
