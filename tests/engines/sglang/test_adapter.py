"""The adapter by itself; at work it is seen in `test_life.py` and its neighbours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from processes import run_ranks

from .schedulers import ON_CPU, model_folder


def before_a_model(folder: str) -> dict[str, Any]:
    """What it answers SGLang before the model that it serves is there."""
    os.environ |= ON_CPU
    import torch
    from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    from eplb_plugin import Topology
    from eplb_plugin.engines.sglang.adapter import Adapter
    from eplb_plugin.engines.sglang.support import Layout
    from eplb_plugin.settings.config import PluginConfig

    args = ServerArgs(model_path=folder, device="cpu", attention_backend="torch_native", dtype="float32")
    args.watchdog_timeout = 900.0
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
    experts = ModelConfigForExpertLocation(num_layers=3, num_logical_experts=8, num_groups=None)
    adapter = Adapter(PluginConfig(), Layout.resolved(), Topology(1, 2, 5), experts, "model")
    adapter.attach(torch.nn.Linear(1, 1))  # a draft, or what SGLang loads before it has an EPLB manager
    adapter.end_pass(recording=True)
    adapter.count_next()
    adapter.load(True)
    return {
        "models": list(adapter.rebalancer.entries),
        "tables": adapter.tables_of(0),
        "SGLang counts": adapter.stage(None, torch.zeros(1, 2)),
        "rebalance": list(adapter.rebalance()),
        "patience": adapter.config.migration.vote_seconds,
        "groups": adapter.num_groups,
    }


def test_before_its_model_is_there_all_is_sglangs(tmp_path: Path) -> None:
    """Nothing is recorded, mapped or moved, and another model than the target is left alone; bounds are in force."""
    (found,) = run_ranks(1, before_a_model, model_folder(tmp_path), timeout=200)
    nothing = {"models": [], "tables": None, "SGLang counts": True, "rebalance": []}
    assert found == {**nothing, "patience": 900.0, "groups": 1}
