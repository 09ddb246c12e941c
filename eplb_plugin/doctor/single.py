"""All checks that one device can show, in the order in which one's failure would explain the next one's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import mismatch
from .agreement import WINDOWS
from .captures import CAPTURES
from .checks import Check, run_checks
from .compiled import COMPILED
from .environment import environment
from .groups import alone
from .launches import LAUNCHES
from .memory import MEMORY
from .moves import MOVES
from .replays import REPLAYS
from .report import Report
from .rows import ROWS
from .site import Site
from .times import TIMES
from .waits import WAIT_COSTS, WAITS

# captures last: one that breaks may leave a device that answers no more
CHECKS: tuple[Check[Site], ...] = (
    ROWS, MOVES, LAUNCHES, REPLAYS, WAITS, WAIT_COSTS, WINDOWS, MEMORY, TIMES, COMPILED, CAPTURES
)  # fmt: skip


def examine(site: Site, file: Path | None = None, checks: Sequence[Check[Site]] = CHECKS) -> Report:
    """Runs them and returns what they found; progress on stderr, the report in `file` after every check."""
    report = Report("eplb-plugin doctor --gpu", environment(), [check.name for check in checks], file)
    with alone():
        report.begin()
        for result in run_checks(checks, site):
            report.add(result)
            report.begin()
    return report


def refuse_no_gpu(needed: int = 1) -> None:
    """Raises PluginError where there are fewer GPUs than that."""
    found = torch.cuda.device_count()
    if found < needed:
        build = f"torch {torch.__version__}" + ("" if torch.version.cuda else ", built without CUDA")
        fix = "run it where the engine will run, in the engine's environment"
        raise mismatch("doctor", found=f"{found} GPUs ({build})", expected=f"at least {needed}", fix=fix)
