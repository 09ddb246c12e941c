"""A scheduler's life with maps, weights and ids on a simulated accelerator, its ranks under NCCL's rules."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eplb_plugin import RoutingStatistics
from processes import run_ranks

from .lives import INTERVAL, planned_routes, routed
from .schedulers import EXPERTS, MOE_LAYERS, Scheduler, Start, model_folder
from .test_warm_start import KEPT, keep
from .test_worker_hooks import DEEPEP

RANKS, REBALANCES, WINDOW = 2, 3, 2
PATIENT = {"transfer_seconds": 300}  # one rank may have to compile what the other has


class OnADevice(Scheduler):
    """SGLang takes `sim` for its device wherever EPLB asks for one."""

    backend, device = "nccl_rules", "sim"

    def _enter(self) -> None:
        import torch

        import nccl_rules
        import simulated_launch
        from eplb_plugin.dispatch import torch_ops

        nccl_rules.install()
        simulated_launch.install()
        for name, run in (("look_up", torch_ops._look_up), ("record", torch_ops._record)):
            torch_ops._LIBRARY.impl(name, run, "PrivateUse1")
        module = SimpleNamespace(is_current_stream_capturing=lambda: False, empty_cache=lambda: None)
        torch.get_device_module = lambda device=None: module

    def _prepare(self) -> None:
        import torch
        from sglang.srt.eplb import expert_distribution, expert_location

        told = SimpleNamespace(device=torch.device(self.device, 0))
        expert_location.get_device = expert_distribution.get_device_namespace = lambda: told
        expert_distribution.get_device = lambda: told.device

    def _model(self) -> Any:
        """SGLang's own groups are made by now: whatever CPU group the plugin makes is under the rules too."""
        import torch.distributed as dist

        plain = dist.new_group
        dist.new_group = lambda ranks, backend: plain(ranks, backend=backend.replace("gloo", "gloo_rules"))
        return super()._model()

    def seen(self, tensor: Any) -> Any:
        import simulated_device

        return simulated_device.host_view(tensor) if tensor.device.type == self.device else tensor


@dataclass
class Seen:
    """Of one rank. maps: [L, P] after every pass. windows: the pass that ended one, and its load on the planning rank.

    waits: how often the engine's thread waited for the device at the end of a pass in which experts move. compared:
    layers and passes whose ids were compared with `route`.
    """

    first_map: np.ndarray
    maps: list[np.ndarray] = field(default_factory=list)
    windows: list[tuple[int, np.ndarray]] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    compared: int = 0
    vote_seconds: float = 0.0
    renewed: int = 0  # how often weights were solved anew and put in force


def live(start: Start, shared: bool) -> Seen:
    import nccl_rules
    import simulated_device as sim
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler = OnADevice(start)
    adapter, metadata = get_adapter(), scheduler.metadata
    entry, observe = adapter.rebalancer.entries["target"], adapter.rebalancer.observe
    seen = Seen(metadata.physical_to_logical_map_cpu.numpy().copy())
    seen.vote_seconds = adapter._mover._cycle._models["target"].shuffler.budget.vote_seconds

    def observing(*args: Any) -> None:
        observe(*args)
        if scheduler.rank == 0:
            seen.windows.append((len(seen.maps), entry.history.newest.load))

    adapter.rebalancer.observe = observing
    nccl_rules.serving()
    while entry.rebalances < REBALANCES or adapter._rebalancing:
        expected, moving = planned_routes(scheduler.rank, adapter), adapter._rebalancing
        rows = routed(scheduler.rank, len(seen.maps), shared)
        with scheduler.running(rows.shape[1]):
            scheduler.route(rows)
        for layer, (logical, physical) in enumerate(scheduler.routed):
            if expected is not None:
                np.testing.assert_array_equal(np.sort(physical), np.sort(expected(logical, layer)))
                seen.compared += 1
        before, plan = sim.counts.waiting["MainThread"], entry.plan
        scheduler.manager.on_forward_pass_end()
        seen.renewed += plan is not entry.plan and not (moving or adapter._rebalancing)
        if moving and adapter._rebalancing:
            seen.waits.append(sim.counts.waiting["MainThread"] - before)
        seen.maps.append(metadata.physical_to_logical_map_cpu.numpy().copy())
        np.testing.assert_array_equal(scheduler.seen(metadata.physical_to_logical_map), seen.maps[-1])
        assert scheduler.weights_are_right()
    assert sim.counts.faults == []
    return seen


@pytest.mark.parametrize("shared", [True, False], ids=["tables of the plugin's, a warm start", "SGLang maps"])
def test_a_life_on_an_accelerator(tmp_path: Path, shared: bool) -> None:
    """Ids are mapped or translated there and counted, experts and maps move there, and no pass waits for it."""
    settings = {"topology": {"nodes": RANKS}, "sample_rows": 256, "migration": {"layers_per_step": 1, **PATIENT}}
    settings |= {"dispatch": "weighted", **keep(tmp_path)} if shared else {"dispatch": "nearest"}
    window = {"expert_distribution_recorder_buffer_size": WINDOW}
    options = {"watchdog_timeout": 700.0, **window} if shared else {**DEEPEP, "deepep_mode": "normal"}
    start = Start(model_folder(tmp_path), [settings] * RANKS, options)
    first, other = run_ranks(RANKS, live, start, shared, timeout=400)
    np.testing.assert_array_equal(np.stack(first.maps), np.stack(other.maps))
    moved = [(one != before).any(1).sum() for before, one in itertools.pairwise([first.first_map, *first.maps])]
    assert sum(moved) > len(MOE_LAYERS)
    for one in (first, other):
        assert len(one.waits) > REBALANCES
        assert set(one.waits) == {0}
        assert (one.compared > 0) == (one.renewed > 0) == shared
        assert one.vote_seconds == (700.0 if shared else 300.0)  # SGLang's watchdog, where that is longer
    assert np.array_equal(first.first_map[MOE_LAYERS], KEPT.phy2log) == shared
    assert len(first.windows) == REBALANCES
    for end, load in first.windows:
        steps = range(end + 1 - (WINDOW if shared else INTERVAL), end + 1)
        rows = [routed(rank, step, shared) for step in steps for rank in ([0] if shared else range(RANKS))]
        np.testing.assert_array_equal(load, RoutingStatistics.from_topk(np.concatenate(rows, axis=1), EXPERTS).load)
