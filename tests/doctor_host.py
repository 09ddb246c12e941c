"""What tests start under TRITON_INTERPRET=1: the doctor's checks on the CPU, all of them, then some with a fault.

python tests/doctor_host.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eplb_plugin.dispatch import torch_ops, triton_kernels
from eplb_plugin.doctor import map_only, single
from eplb_plugin.doctor.checks import run_check
from eplb_plugin.doctor.compiled import COMPILED
from eplb_plugin.doctor.launches import LAUNCHES
from eplb_plugin.doctor.site import Site
from eplb_plugin.doctor.times import TIMES


def counted_twice(patch: pytest.MonkeyPatch) -> None:
    launch = triton_kernels.launch

    def twice(ids: torch.Tensor, slots: torch.Tensor | None, counters: Any, **way: Any) -> None:
        launch(ids, slots, counters, **way)
        counters.load[0] += 1

    patch.setattr(triton_kernels, "launch", twice)


def mapped_elsewhere(patch: pytest.MonkeyPatch) -> None:
    way = map_only.map_only
    patch.setattr(map_only, "map_only", lambda ids, rows: way(ids, rows) + 1)


def announced_wrong(patch: pytest.MonkeyPatch) -> None:
    """An operator that writes what its schema does not declare."""
    cover = torch_ops.kernels.cover

    def wrong(ids: torch.Tensor, tables: Any, counters: Any) -> torch.Tensor:
        tables.counts.add_(1)
        return cover(ids, tables, counters)

    patch.setattr(torch_ops.kernels, "cover", wrong)


FAULTS = [(counted_twice, LAUNCHES), (mapped_elsewhere, TIMES), (announced_wrong, COMPILED)]

if __name__ == "__main__":
    folder, site = Path(sys.argv[1]), Site(torch.device("cpu"))
    report = single.examine(site, folder / "report.json")
    report.show()
    found = {}
    for fault, check in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            result = run_check(check, site)
            found[fault.__name__] = [result.status, result.detail]
    (folder / "faults.json").write_text(json.dumps(found))
