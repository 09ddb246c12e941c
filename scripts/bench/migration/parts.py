"""Single parts at the scale of DeepSeek-V3 on 32 ranks, one thread, no group: planning, maps, seals.

`python -m bench.migration.parts` prints JSON: {part: {what: milliseconds (median of 9), or as named}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.distributed.eplb import eplb_state, rebalance_execute
from vllm.distributed.eplb.migration_scheduler import schedule_migration_batches_for_layers
from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

from bench.planner import rows as planner_rows
from eplb_plugin import Placement, RoutingStatistics, Topology, plan
from eplb_plugin.engines.device_tables import DispatchTables
from eplb_plugin.migration.checksum import broken, seal
from eplb_plugin.migration.schedule import schedule
from eplb_plugin.planning.planner import plan_of

from .arms import Nothing

LAYERS, EXPERTS, NODES, RANKS, SLOTS = 58, 256, 4, 32, 9


def milliseconds(action: Callable[[], Any]) -> float:
    action()
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - began))
    return round(median(taken), 3)


def planning() -> dict[str, float]:
    """Two unrelated placements: nearly every slot moves. vLLM plans for one rank, with a tensor of one byte."""
    old, new = (shuffled(seed) for seed in (0, 1))
    tiny = [torch.ones(SLOTS, 1, dtype=torch.int8)]

    def vllm() -> None:
        for one, other in zip(old, new, strict=True):
            rebalance_execute.move_to_buffer(SLOTS, one, other, tiny, tiny, None, 0, Nothing())

    return {
        "eplb_plugin, all ranks, with rounds": milliseconds(lambda: schedule(old, new, Topology(NODES, 8, SLOTS))),
        "vllm, one rank": milliseconds(vllm),
        "vllm, migration batches": milliseconds(lambda: schedule_migration_batches_for_layers(SLOTS, old, new)),
    }


def maps() -> dict[str, float]:
    """What servers switch to: the plugin its tables of `weighted`, which vLLM's kernel looks up; vLLM its own maps."""
    rows = shuffled(2)
    made = plan_of(Placement(rows), Topology(NODES, RANKS // NODES, SLOTS), "weighted")
    ours = DispatchTables(made, [0], torch.device("cpu"))
    state = SimpleNamespace(
        physical_to_logical_map=torch.zeros(LAYERS, RANKS * SLOTS, dtype=torch.int64),
        logical_to_physical_map=torch.full((LAYERS, EXPERTS, 1024), -1),
        logical_replica_count=torch.zeros(LAYERS, EXPERTS, dtype=torch.int64),
    )
    theirs = state.logical_to_physical_map.nbytes + state.logical_replica_count.nbytes
    new = torch.from_numpy(rows)
    return {
        "eplb_plugin, all layers": milliseconds(lambda: ours.switch(range(LAYERS), made)),
        "eplb_plugin, one layer": milliseconds(lambda: ours.switch([3], made)),
        "vllm, all layers": milliseconds(lambda: eplb_state._commit_eplb_maps(state, new)),
        "vllm, one layer": milliseconds(lambda: eplb_state._commit_eplb_maps_for_layer(state, new[3], 3)),
        "eplb_plugin MiB": round(ours.nbytes() / 2**20, 2),
        "vllm MiB": round(theirs / 2**20, 2),
    }


def seals() -> dict[str, float]:
    """9 rows of 9 MiB: what one message costs at its sender, and at its receiver; beside a plain copy of it."""
    rows = torch.ones(9, 9 << 20, dtype=torch.uint8)
    other, identity = torch.empty_like(rows), torch.arange(9)
    return {
        "seal": milliseconds(lambda: seal(rows, identity)),
        "check": milliseconds(lambda: broken(rows, identity)),
        "copy": milliseconds(lambda: other.copy_(rows)),
    }


def moves() -> dict[str, float]:
    """Experts that travel at one rebalance, loads ±15 % from window to window: vanilla's plan and the plugin's."""
    row = planner_rows.DRIFT[0]
    topology = Topology(NODES, RANKS // NODES, SLOTS)

    def vanilla(load: Any, previous: Any) -> Any:
        policy = DefaultEplbPolicy.rebalance_experts
        return policy(torch.from_numpy(load), row.slots, row.groups, NODES, RANKS, previous)

    old = vanilla(row.first_load(), None)
    plans = {"vllm": vanilla(row.load(), old).numpy()}
    made = plan(RoutingStatistics(row.load()), topology, policy="balanced", previous=Placement(old.numpy()))
    plans["eplb_plugin"] = made.placement.phy2log
    found = {}
    for name, new in plans.items():
        planned = schedule(old.numpy(), new, topology)
        for kind, traffic in (("ranks", planned.rank_traffic(1)), ("nodes", planned.node_traffic(1))):
            found[f"{name}: experts between {kind}"] = float(traffic.sum() - np.trace(traffic))
    return found


def shuffled(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(RANKS * SLOTS) % EXPERTS, (LAYERS, 1)), axis=1)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    print(json.dumps({"planning": planning(), "maps": maps(), "seals": seals(), "moves": moves()}), file=answers)
    sys.exit()
