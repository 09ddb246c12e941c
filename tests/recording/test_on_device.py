"""Recording on an accelerator: what stops the host, what is allocated, how many launches a step has; a simulated one.

Docs quote the launches and bytes that are counted here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from eplb_plugin import Placement, Plan, Topology
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.kernels import cover, look_up, record
from eplb_plugin.engines.device_tables import DispatchTables
from eplb_plugin.recording.load import take_load
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime.resplit_loop import Solved, _Solving
from processes import run_ranks

LAYERS, EXPERTS, TOP_K, TOKENS, SLOTS = 3, 12, 2, 20, 16
TOPOLOGY = Topology(2, 1, 8)


def plan(rule: Any, turn: int = 0) -> Plan:
    rows = (np.arange(SLOTS, dtype=np.int32) + turn) % EXPERTS
    weights = np.tile(np.arange(SLOTS, dtype=np.int32) % 7 + 1, (LAYERS, 1))
    shares = np.full((LAYERS, SLOTS), 0.5)
    return Plan(Placement(np.tile(rows, (LAYERS, 1))), TOPOLOGY, rule, shares, 0.0, cover_weights=weights)


class Model:
    """A recorder and tables on the simulated device, and passes of all layers by a rule (record: mapped elsewhere)."""

    def __init__(self, rule: Any) -> None:
        import simulated_device
        import simulated_launch

        self.sim, self.device = simulated_device, simulated_device.install()
        simulated_launch.install()
        self.rule, self.recorder = rule, Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 64, self.device)
        self.tables = DispatchTables(plan("weighted" if rule == "record" else rule), [0], self.device)
        self.layers = [self.tables.layer(layer) for layer in range(LAYERS)]
        self.slot_load = torch.zeros(SLOTS, dtype=torch.int32, device=self.device)
        self.yes = torch.tensor(True, device=self.device)
        self.real = torch.tensor(TOKENS - 3, dtype=torch.int32, device=self.device)
        self.random = np.random.default_rng(0)
        self.ids = torch.zeros(TOKENS, TOP_K, dtype=torch.int32, device=self.device)
        self.slots: list[torch.Tensor] = []

    def passed(self) -> np.ndarray:
        """One forward pass as a graph replays it: ids at one address, and nothing but what may be captured."""
        chosen = np.argsort(self.random.random((TOKENS, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
        self.sim.host_view(self.ids).copy_(torch.from_numpy(chosen))
        switches = self.recorder.counting, self.recorder.counting_pairs, self.yes
        self.slots = []
        with self.sim.capturing(pool=True):  # the result's memory is the graph's own
            for layer in range(LAYERS):
                counters = Counters(*self.recorder.passing(layer), self.slot_load, *switches, self.real, 0)
                if self.rule == "record":
                    record(self.ids, counters)
                    continue
                mapped = cover if self.rule == "cover" else look_up
                self.slots.append(mapped(self.ids, self.layers[layer], counters))
        return chosen


def steps(rule: str) -> dict[str, Any]:
    """In a plan's window, in one of weights, outside any, and one that is dropped: launches, and where they went."""
    model = Model(rule)
    recorder, counts = model.recorder, model.sim.counts
    found: dict[str, Any] = {"launches": {}, "addresses": [], "allocated": []}
    for name, load, pairs, real in (
        ("plan", True, True, True), ("plan", True, True, True), ("weights", True, False, True),
        ("weights", True, False, True), ("outside", False, False, True), ("dummy", True, True, False),
    ):  # fmt: skip
        recorder.count(load, pairs)
        counts.reset()
        recorder.expect([TOKENS - 3])
        model.passed()
        found["addresses"].append([where for name, where in counts.addresses if name == "pass"])
        found["allocated"].append(counts.allocations)
        in_pass = counts.launches["pass"]
        recorder.fold() if real else recorder.skip()
        found["launches"][name] = sum(counts.launches.values()) - in_pass
        assert in_pass == LAYERS
        assert counts.stops == 0
        model.tables.switch([0, 2], plan((model.tables.cover and "cover") or "weighted", turn=len(found["addresses"])))
        assert counts.stops == 0, "new tables wait for the device"
    taken = take_load(recorder)

    def solve() -> Solved:
        found.update(load=taken().tolist())
        return None, False

    solving = _Solving(solve, model.device)
    solving.found()
    assert counts.host_reads == {}
    assert counts.pageable == 0  # and the thread that solves, not this one, waited for the copy
    found["faults"] = list(model.sim.counts.faults)
    return found


def check(rule: str, results: int) -> None:
    (found,) = run_ranks(1, steps, rule, timeout=300.0)  # kernels may have to be compiled
    assert found["faults"] == []
    assert all(where == found["addresses"][0] for where in found["addresses"])
    assert set(found["allocated"]) == {results}  # the slots themselves, of every layer
    *load, tokens, left_out = np.array(found["load"]).reshape(LAYERS, EXPERTS + 2).T
    assert tokens.tolist() == [4 * (TOKENS - 3)] * LAYERS
    assert sum(load).tolist() == (TOP_K * tokens).tolist()
    assert not left_out.any()
    assert found["launches"] == {"plan": 19, "weights": 2, "outside": 0, "dummy": 4}  # as docs/dispatch.md says


def test_cover_is_fit_for_a_graph_and_stops_nobody() -> None:
    """The launch reads and writes the same memory in every step; between steps nothing waits, and outside windows
    nothing happens.
    """
    check("cover", LAYERS)


def test_weighted_likewise() -> None:
    check("weighted", LAYERS)


def test_recording_alone_likewise() -> None:
    check("record", 0)
