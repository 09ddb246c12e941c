"""`exact` on an accelerator: what stops the host, what is allocated, whether addresses stay; a simulated one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from eplb_plugin import Placement, Plan, Topology, route_step
from eplb_plugin.dispatch.exact.kernels import choose, count
from eplb_plugin.dispatch.exact.tables import ExactTables, exact_maps
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from processes import run_ranks
from recorded import counters

LAYERS, EXPERTS, TOKENS, TOP_K = 2, 12, 20, 2
TOPOLOGY = Topology(2, 1, 8)


def plan(turn: int) -> Plan:
    rows = (np.arange(16, dtype=np.int32)[None] + turn * np.arange(1, 1 + LAYERS)[:, None]) % EXPERTS
    return plan_of(Placement(rows.astype(np.int32)), TOPOLOGY, "cover")


def steps() -> dict[str, Any]:
    """Captured passes of rank 0, with a switch after each; rank 1 routes nothing, and its row is zeros."""
    import simulated_device as sim
    import simulated_launch

    device = sim.install()
    simulated_launch.install()
    tables = ExactTables(plan(0), [0], device, 0.0)
    layers = [tables.layer(layer) for layer in range(LAYERS)]
    recorder = Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 64, device)
    counted = [counters(recorder, layer, enabled=False) for layer in range(LAYERS)]
    gathered = torch.zeros(tables.sources, tables.payload, dtype=torch.int32, device=device)
    ids = torch.zeros(TOKENS, TOP_K, dtype=torch.int32, device=device)
    random, found = np.random.default_rng(0), {"addresses": [], "allocated": set(), "right": [], "stops": 0}
    for turn in range(4):
        chosen = np.argsort(random.random((TOKENS, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
        sim.host_view(ids).copy_(torch.from_numpy(chosen))
        sim.counts.reset()
        slots = []
        with sim.capturing(pool=True):  # the result's memory is the graph's own
            for layer, counter in zip(layers, counted, strict=True):
                gathered[0].copy_(count(ids, layer))
                slots.append(choose(ids, layer, gathered, counter))
        found["allocated"].add(sim.counts.allocations)
        found["addresses"].append([where for name, where in sim.counts.addresses if name.startswith("exact")])
        for layer, mapped in enumerate(slots):
            found["right"].append(np.array_equal(sim.host_view(mapped), route_step(chosen, 0, plan(turn), layer)))
        tables.put(exact_maps(plan(turn + 1), range(LAYERS)), range(LAYERS))
        found["stops"] += sim.counts.stops + sum(sim.counts.host_reads.values()) + sim.counts.pageable
    return {**found, "faults": list(sim.counts.faults)}


def test_it_is_fit_for_a_graph_and_stops_nobody() -> None:
    """Launches read and write the same memory before and after a switch, which waits for nothing either; only the slots
    of every layer are allocated, and they are right.
    """
    (found,) = run_ranks(1, steps, timeout=300.0)  # kernels may have to be compiled
    assert found["faults"] == []
    assert found["stops"] == 0
    assert all(found["right"])
    assert len(found["right"]) == 4 * LAYERS
    assert found["allocated"] == {LAYERS}
    assert len(found["addresses"][0]) == 2 * LAYERS
    assert all(where == found["addresses"][0] for where in found["addresses"])
