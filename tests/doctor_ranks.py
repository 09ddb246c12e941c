"""What torchrun starts in tests: the doctor's checks of several ranks on CPUs, with a fault in the last one if asked.

torchrun --nproc-per-node N tests/doctor_ranks.py FILE [FAULT]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from eplb_plugin.doctor import agreement, ranks
from eplb_plugin.doctor.site import Site
from eplb_plugin.errors import PluginError
from eplb_plugin.migration.layout import ExpertRows


def flip_a_byte() -> None:
    """A row is written with one wrong byte: no seal can see it, the maps can."""
    write = ExpertRows.write

    def wrong(self: ExpertRows, slots: torch.Tensor, rows: torch.Tensor) -> None:
        changed = rows.clone()
        changed[0, 0] ^= 1
        write(self, slots, changed)

    ExpertRows.write = wrong


def raise_in_a_window() -> None:
    """While the others wait for its part of the sum."""

    def wrong(*args: object) -> None:
        raise RuntimeError("no route\nto host")

    agreement.snapshot = wrong


def other_release() -> None:
    from eplb_plugin.doctor import environment

    environment.__version__ = "0.0.1"


FAULTS = {"byte": flip_a_byte, "window": raise_in_a_window, "release": other_release}

if __name__ == "__main__":
    index = ranks.local_rank()
    if len(sys.argv) > 2 and index == int(os.environ["WORLD_SIZE"]) - 1:
        FAULTS[sys.argv[2]]()
    try:
        report = ranks.examine(Site(torch.device("cpu")), Path(sys.argv[1]))
    except PluginError as error:
        sys.exit(f"eplb-plugin: {error}")
    if index == 0:
        report.show()
