"""What SGLang's own flags make of the plugin's settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from processes import run_ranks

from .schedulers import ON_CPU, model_folder

CASES: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({}, {}, 300.0),  # what both are by default
    ({}, {"watchdog_timeout": 900.0}, 900.0),
    ({}, {"watchdog_timeout": 20.0}, 300.0),
    ({"vote_seconds": 45.0}, {"watchdog_timeout": 900.0}, 45.0),
    ({"vote_seconds": 2000.0}, {}, 2000.0),
]


def patience(folder: str) -> list[float]:
    """Seconds that a rank is waited for, case by case."""
    os.environ |= ON_CPU
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    from eplb_plugin.config import parse_config
    from eplb_plugin.engines.sglang.adapter import _as_sglang_bounds
    from eplb_plugin.migration.budget import Budget

    found = []
    for migration, flags, _ in CASES:
        args = ServerArgs(model_path=folder, device="cpu", attention_backend="torch_native", dtype="float32", **flags)
        args.resolve_once()
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
        config = _as_sglang_bounds(parse_config({"migration": migration}, "test"))
        found.append(Budget(**config.migration.model_dump(exclude_none=True)).vote_seconds)
    return found


def test_a_rank_is_waited_for_as_long_as_sglang_waits(tmp_path: Path) -> None:
    """At least by its watchdog, whatever that is set to; where the settings name a time, that is it."""
    (found,) = run_ranks(1, patience, model_folder(tmp_path), timeout=200)
    assert found == [expected for *_, expected in CASES]
