"""What maps ids and counts them, made twice: on a site's device, and on the host for reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..dispatch import kernels
from ..dispatch.buffers import Counters, LayerTables
from ..engines.device_tables import DispatchTables
from ..placement import Placement
from ..plan_types import Dispatch, Plan
from ..planning.planner import plan_of
from ..recording.recorder import Recorder
from ..topology import Topology
from .checks import expect_equal

UNBOUNDED = 2**31 - 1  # real tokens where nobody says how many
HOST = torch.device("cpu")


class Lane:
    """Tables, recorder and switches on one device, at fixed addresses."""

    def __init__(
        self, plan: Plan, device: torch.device, *, top_k: int, max_tokens: int, source: int = 0, chunk: int = 0
    ) -> None:
        placement = plan.placement
        self.layers, self.chunk = placement.num_layers, chunk
        self.tables = DispatchTables(plan, [source], device)
        self.recorder = Recorder(self.layers, placement.num_experts, top_k, max_tokens, 64, device)
        self.slot_load = torch.zeros(self.layers, placement.num_slots, dtype=torch.int32, device=device)
        self.slots_enabled = torch.tensor(True, device=device)
        self.real = torch.tensor(UNBOUNDED, dtype=torch.int32, device=device)

    def set(self, real: int, load: bool = True, pairs: bool = True, slots: bool = True) -> None:
        """What the coming pass counts; the device reads it when it gets there."""
        self.recorder.count(load, pairs)
        self.recorder.expect([real])
        self.slots_enabled.fill_(slots)
        self.real.fill_(real)

    def counters(self, layer: int) -> Counters:
        recorder = self.recorder
        switches = recorder.counting, recorder.counting_pairs, self.slots_enabled
        return Counters(*recorder.passing(layer), self.slot_load[layer], *switches, self.real, self.chunk)

    def map(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """As engines call it."""
        tables = self.tables.layer(layer)
        way = kernels.cover if isinstance(tables, LayerTables) else kernels.look_up
        return way(ids, tables, self.counters(layer))  # type: ignore[arg-type]

    def equals(self, what: str, other: Lane) -> None:
        """Every count of the pass and of the window. Raises PluginError."""
        for layer in range(self.layers):
            ours, theirs = self.recorder.passing(layer), other.recorder.passing(layer)
            for name, one, two in zip(ours._fields, ours, theirs, strict=True):
                expect_equal(f"{what}: {name} of the pass, layer {layer}", one, two)
        for name in ("totals", "pairs", "sample", "num_tokens"):
            expect_equal(f"{what}: {name}", getattr(self.recorder, name), getattr(other.recorder, name))
        expect_equal(f"{what}: load of slots", self.slot_load, other.slot_load)


def make_plan(
    rng: np.random.Generator, dispatch: Dispatch, *, layers: int, experts: int, nodes: int, spare: int
) -> Plan:
    """Random: at least `spare` redundant slots on nodes of one rank each, any shares."""
    slots = -(-(experts + spare) // nodes) * nodes
    rows = np.stack(
        [rng.permutation(np.r_[:experts, rng.integers(0, experts, slots - experts)]) for _ in range(layers)]
    )
    plan = plan_of(Placement(rows.astype(np.int32)), Topology(nodes, 1, slots // nodes), dispatch)
    return replace(plan, cover_weights=rng.integers(1, 256, rows.shape, np.int32)) if dispatch == "cover" else plan


def make_ids(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> NDArray[np.int64]:
    """[T, k] distinct ids, as a router gives; but some are -1, some rows are nothing else, some name an id twice."""
    ids = rng.random((tokens, experts)).argsort(1)[:, :top_k]
    ids[rng.random(ids.shape) < 0.1] = -1
    ids[rng.random(tokens) < 0.1] = -1
    twice = rng.random(tokens) < 0.1
    ids[twice, -1] = ids[twice, 0]
    return ids
