"""What SGLang's own flags make of the plugin's settings and buffers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from processes import run_ranks

from .schedulers import ON_CPU, model_folder

CHUNK: dict[str, Any] = {"chunked_prefill_size": 512, "max_running_requests": 16}
# the plugin's settings, SGLang's flags, and seconds, layers and rows that come of both
CASES: list[tuple[dict[str, Any], dict[str, Any], float, int, int]] = [
    ({}, CHUNK, 300.0, 1, 512),  # but for the rows, what both are by default
    ({"layers_per_step": 5}, {**CHUNK, "watchdog_timeout": 900.0, "eplb_rebalance_layers_per_chunk": 2}, 900.0, 2, 512),
    ({"layers_per_step": 3}, {**CHUNK, "watchdog_timeout": 20.0, "eplb_rebalance_layers_per_chunk": 8}, 300.0, 3, 512),
    ({"vote_seconds": 45.0}, {**CHUNK, "watchdog_timeout": 900.0, "max_running_requests": 600}, 45.0, 1, 600),
    ({"vote_seconds": 2000.0}, CHUNK, 2000.0, 1, 512),
]


def bounded(folder: str) -> list[tuple[float, int, int]]:
    """Seconds that a rank is waited for, layers that move in a pass, rows that a pass routes: case by case."""
    os.environ |= ON_CPU
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    from eplb_plugin.engines.sglang.bounds import as_sglang_bounds, max_tokens
    from eplb_plugin.migration.limits import Budget
    from eplb_plugin.settings.config import parse_config

    found = []
    for migration, flags, *_ in CASES:
        args = ServerArgs(model_path=folder, device="cpu", attention_backend="torch_native", dtype="float32", **flags)
        args.resolve_once()
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
        config = as_sglang_bounds(parse_config({"migration": migration}, "test"))
        budget = Budget(**config.migration.model_dump(exclude_none=True))
        found.append((budget.vote_seconds, config.migration.layers_per_step, max_tokens()))
    return found


def test_sglangs_own_bounds_hold(tmp_path: Path) -> None:
    """A rank is waited for at least as long as SGLang's watchdog waits, but where the settings name a time; no more
    layers move in a pass than SGLang was told; and every row that a chunk or all running requests route is recorded.
    """
    (found,) = run_ranks(1, bounded, model_folder(tmp_path), timeout=200)
    assert found == [(float(patience), layers, rows) for _, _, patience, layers, rows in CASES]
