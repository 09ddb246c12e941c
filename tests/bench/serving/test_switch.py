"""Ordered placements: what was asked for, planned from the same traffic whatever the order; and none that was not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.serving.placements import PLUGIN
from eplb_plugin.dispatch.kernels import CoverTables
from eplb_plugin.engines.vllm import dispatch_hook
from eplb_plugin.placement import Placement
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.plan import plan
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.plan_codec import accept
from eplb_plugin.runtime.window_history import WindowHistory
from eplb_plugin.settings.config import parse_config
from eplb_plugin.statistics import RoutingStatistics
from eplb_plugin.topology import Topology

TOPOLOGY = Topology(2, 1, 10)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    specification = importlib.util.spec_from_file_location("eplb_bench_switch", PLUGIN / "eplb_bench_switch.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


def window(seed: int) -> RoutingStatistics:
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(16, 0.5))
    rows = np.array([rng.choice(16, 4, replace=False, p=popularity + 1e-3 - popularity * 0.016) for _ in range(300)])
    return RoutingStatistics.from_topk(rows[None], 16)


class Bench:
    """One planning rank, from rebalance to rebalance."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.config = parse_config({}, "test")
        self.entry = ModelEntry("m", TOPOLOGY, "affinity", "weighted", 16, 1, [0], history=WindowHistory(1))
        self.switch = module._Switch(folder)
        linear = Placement(np.arange(20, dtype=np.int32)[None] % 16)
        self.in_force = self.first = plan_of(linear, TOPOLOGY, "weighted")

    def order(self, policy: str, dispatch: str) -> None:
        self.number += 1
        order = {"number": self.number, "policy": policy, "dispatch": dispatch}
        (self.folder / "order.json").write_text(json.dumps(order))

    def rebalance(self) -> tuple[str, Plan]:
        outcome, message = self.switch.propose(self.entry, self.in_force, self.config)
        self.in_force = accept(message, self.in_force)
        return outcome.result, self.in_force

    def placed(self, policy: str, dispatch: str) -> Plan:
        self.order(policy, dispatch)
        return self.rebalance()[1]

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads((self.folder / "answer.json").read_text())


def test_nothing_changes_without_an_order(module: ModuleType, tmp_path: Path) -> None:
    bench = Bench(module, tmp_path)
    bench.order("affinity", "weighted")
    assert bench.rebalance() == ("skipped", bench.in_force)  # nothing was recorded yet
    assert not (tmp_path / "answer.json").exists()
    bench.entry.history.add(window(0))
    assert bench.rebalance()[0] == "accepted"
    bench.entry.history.add(window(1))
    placed = bench.in_force.digest
    result, now = bench.rebalance()
    assert (result, now.digest) == ("skipped", placed)
    assert bench.answer["number"] == 1


def test_placements_do_not_depend_on_their_order(module: ModuleType, tmp_path: Path) -> None:
    """All are planned from the windows until the first order, whatever was recorded since and whatever lies there."""
    orders = [(policy, "hash") for policy in ("engine", "deepseek", "affinity")]
    orders += [("affinity", "weighted"), ("affinity", "cover")]
    digests = []
    for turn, words in enumerate((orders, orders[::-1])):
        folder = tmp_path / str(turn)
        folder.mkdir()
        bench, made = Bench(module, folder), {}
        for number, order in enumerate(words):
            bench.entry.history.add(window(0 if number == 0 else 10 * turn + number))
            made[order] = bench.placed(*order).digest
        digests.append(made)
    assert digests[0] == digests[1]
    assert len(set(digests[0].values())) == 5


def test_all_traffic_before_the_first_order_is_planned_from(module: ModuleType, tmp_path: Path) -> None:
    bench = Bench(module, tmp_path)
    for seed in range(3):
        bench.entry.history.add(window(seed))
        assert bench.rebalance()[0] == "skipped"
    bench.entry.history.add(window(3))
    made = bench.placed("affinity", "cover")
    merged = window(0).merge(window(1)).merge(window(2)).merge(window(3))
    expected = plan(merged, TOPOLOGY, policy="affinity", dispatch="cover")
    np.testing.assert_array_equal(made.placement.phy2log, expected.placement.phy2log)
    np.testing.assert_array_equal(made.cover_weights, expected.cover_weights)


def test_layers_take_up_the_rule_of_their_placement(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only those that switch."""
    monkeypatch.setattr(dispatch_hook, "_layers", {})
    tables = SimpleNamespace(owners=[1], rows=torch.zeros((2, 16, 32), dtype=torch.int32))
    first, second = (dispatch_hook.MappedLayer(index, Recorder(1, 16, 4, 8, 4, CPU), 0, None) for index in range(2))
    for layer in (first, second):
        dispatch_hook.register(tables.rows[layer.index], layer)
    for_tables, for_cover = (
        plan(window(0), TOPOLOGY, policy="affinity", dispatch=rule) for rule in ("weighted", "cover")
    )
    module._choose_rule(tables, [0], for_cover)
    assert first.tables is not None
    expected = CoverTables(for_cover, [1], CPU).layer(0)
    for part, wanted in zip(first.tables[:3], expected[:3], strict=True):
        assert torch.equal(part, wanted)
    assert first.tables[3:] == expected[3:]
    assert second.tables is None
    module._choose_rule(tables, [0], for_tables)
    assert first.tables is None


def test_placements_are_the_planners(module: ModuleType, tmp_path: Path) -> None:
    bench = Bench(module, tmp_path)
    bench.entry.history.add(window(0))
    made = bench.placed("deepseek", "hash")
    expected = plan(window(0), TOPOLOGY, policy="deepseek", dispatch="hash")
    np.testing.assert_array_equal(made.placement.phy2log, expected.placement.phy2log)
    np.testing.assert_allclose(made.replica_weights, 1 / made.placement.replica_count[0][made.placement.phy2log])
    assert made.source_weights is None
    assert bench.answer["slots_changed"] == (made.placement.phy2log != bench.first.placement.phy2log).sum()
    weighted = bench.placed("affinity", "weighted")
    expected = plan(window(0), TOPOLOGY, policy="affinity", dispatch="weighted")
    np.testing.assert_array_equal(weighted.source_weights, expected.source_weights)
    assert bench.placed("engine", "hash").digest == bench.first.digest


def test_what_cannot_be_planned_changes_nothing_and_says_so(module: ModuleType, tmp_path: Path) -> None:
    bench = Bench(module, tmp_path)
    bench.entry.history.add(window(0))
    bench.order("no such policy", "hash")
    assert bench.rebalance()[0] == "refused"
    assert bench.in_force.digest == bench.first.digest
    assert "policy" in bench.answer["error"]
