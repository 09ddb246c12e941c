"""What is moved: deployments of 4 processes, their experts' tensors, and the placements between which they move."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.planner.rows import Row as Load

RANKS, NODES = 4, 2
DRIFT = 0.15


@dataclass(frozen=True)
class Row:
    """tensors: {name: (dtype, shape)} of one expert. pause: seconds that stand for a forward step between two steps."""

    name: str
    layers: int
    experts: int
    slots_per_rank: int
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    groups: int = 1
    pause: float = 0.01

    @property
    def load(self) -> Load:
        return Load(
            self.name, self.layers, self.experts, NODES, RANKS, self.slots_per_rank, groups=self.groups, drift=DRIFT
        )


ROWS = {
    row.name: row
    for row in (
        Row(
            "DeepSeek-V3 layers, small tensors: 58 x 256 -> 288",
            58, 256, 72,
            {"w13": ("int8", (64, 32)), "w2": ("int8", (32, 32)), "w13_scale": ("float32", (4, 2)),
             "w2_scale": ("float32", (2, 2))},
            groups=8,
        ),
        Row(
            "Qwen3-30B-size experts (9 MiB): 4 x 32 -> 36",
            4, 32, 9,
            {"w13": ("bfloat16", (1536, 2048)), "w2": ("bfloat16", (2048, 768))},
            pause=0.05,
        ),
    )
}  # fmt: skip


def placements(row: Row) -> dict[str, Any]:
    """{"old": vLLM's for one window, "vanilla": vLLM's for the next, "own": the plugin's repair of `old` for it}."""
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    from eplb_plugin import Placement, RoutingStatistics, Topology, plan

    load = row.load

    def vanilla(window: Any, previous: Any) -> Any:
        old = None if previous is None else torch.from_numpy(previous)
        policy = DefaultEplbPolicy.rebalance_experts
        return policy(torch.from_numpy(window), load.slots, load.groups, NODES, RANKS, old).numpy()

    old = vanilla(load.first_load(), None)
    topology = Topology(NODES, RANKS // NODES, row.slots_per_rank)
    own = plan(RoutingStatistics(load.load()), topology, policy="balanced", previous=Placement(old))
    return {"old": old, "vanilla": vanilla(load.load(), old), "own": own.placement.phy2log.astype(np.int64)}


def save(row: Row, folder: Path) -> None:
    np.savez(folder / "placements.npz", **placements(row))
