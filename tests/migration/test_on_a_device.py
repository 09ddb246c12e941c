"""Whole migrations with the layers on a simulated accelerator: over gloo, and under NCCL's rules in NCCL's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nccl_rules
import simulated_device as sim
from eplb_plugin import Topology
from eplb_plugin.migration.checksum import broken, seal
from eplb_plugin.migration.layout import expert_rows
from eplb_plugin.migration.limits import Budget
from expert_models import ON_A_DEVICE, Model, device_of, groups
from processes import Ranks
from strategies import QUICK, migrations

SIZE = 4
PLACES = Topology(2, 2, 3)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(SIZE) as ranks:
        yield ranks


def serve(wires: str, old: Any, new: Any, topology: Topology, budget: Budget, stepwise: bool = True) -> tuple[int, int]:
    """-> the most launches in a step, and steps; weights and maps are compared after every step, waits are counted."""
    model = Model(old, topology.slots_per_rank, True, device_of(wires))
    shuffler = model.shuffler(topology, *groups(wires), budget)
    nccl_rules.serving()
    sim.counts.reset()
    shuffler.begin(old, new)
    most = steps = before = 0
    while stepwise and shuffler.step():
        model.check()
        most, before = max(most, sim.counts.launches.total() - before), sim.counts.launches.total()
        steps += 1
    shuffler.finish()
    model.check()
    assert shuffler.refusal == ""
    assert np.array_equal(model.phy2log, new)
    assert sim.counts.waiting["MainThread"] == 0, sim.counts.host_reads
    if wires == "sim over nccl":
        assert sim.counts.stops == 0
    assert sim.counts.faults == []
    return most, steps


@pytest.mark.parametrize("wires", ON_A_DEVICE)
@given(data=st.data())
@settings(QUICK, max_examples=8)
def test_rows_move_and_the_engine_never_waits(ranks: Ranks, wires: str, data: st.DataObject) -> None:
    """Any placement to any other: every byte right after every step, and no step waits for the device or a transfer."""
    old, new, topology = data.draw(migrations(SIZE))
    budget = Budget(data.draw(st.integers(1, 3)), None, data.draw(st.sampled_from([1, 60_000, 1 << 20])))
    ranks.run(serve, wires, old, new, topology, budget, data.draw(st.booleans()))


def launched(width: int, rows: int) -> list[int]:
    """-> of one read, write, seal and check of these rows, which have two tensors."""
    device = sim.install()
    tensors = {"w": torch.zeros(4, width, dtype=torch.int64).to(device), "scale": torch.zeros(4, 3).to(device)}
    layout = expert_rows(tensors, 4)
    staging = torch.zeros(rows, layout.row_bytes, dtype=torch.uint8).to(device)
    slots = torch.arange(rows).to(device)
    seal(staging, slots)  # makes the weights of the sum, once
    found = []
    for action in (layout.read, layout.write, lambda one, two: seal(two, one), lambda one, two: broken(two, one)):
        sim.counts.reset()
        action(slots, staging)
        found.append(sim.counts.launches.total())
        assert sim.counts.stops == 0
    return found


@pytest.mark.parametrize(("width", "rows", "expected"), [(64, 3, [2, 2, 5, 5]), (5000, 3, [2, 2, 12, 12])])
def test_launches_are_as_few_as_the_docs_say(ranks: Ranks, width: int, rows: int, expected: list[int]) -> None:
    """One for each tensor to read and to write, however many rows; 12 for a seal of long rows, 5 of short ones."""
    assert ranks.run(launched, width, rows) == [expected] * SIZE


def relayed(layers: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Placements between which experts cross to the other node once, and are passed on there."""
    old = np.tile(np.arange(6), (layers, 2))
    new = np.tile(np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2]), (layers, 1))
    old[:, 6:] = [3, 4, 5, 3, 4, 5]
    return old, new


@pytest.mark.parametrize("wires", ON_A_DEVICE)
def test_experts_are_passed_on(ranks: Ranks, wires: str) -> None:
    """From the gateway's staging memory, as it arrived there."""
    old, new = relayed(2)
    ranks.run(serve, wires, old, new, PLACES, Budget())


def broken_row(wires: str, serial: int) -> tuple[str, list[list[int]]]:
    """-> why a migration was refused in which rank 2 damages what it sends."""
    model = Model(np.tile(np.arange(12), (3, 1)), 3, False, device_of(wires))
    shuffler = model.shuffler(PLACES, *groups(wires))
    start = shuffler.wires.start
    if model.rank == 2:

        def damage(peer: int, sent: Any, received: Any) -> Any:
            if len(sent):
                sent[7] += 1
            return start(peer, sent, received)

        shuffler.wires.start = damage  # type: ignore[method-assign]
    shuffler.begin(model.phy2log.copy(), np.roll(model.phy2log, 3, axis=1))
    while shuffler.step():
        model.check()
    model.check()
    assert shuffler.wires.intact
    return shuffler.refusal, model.switched


@pytest.mark.parametrize("wires", ON_A_DEVICE)
def test_a_broken_seal_is_seen_on_the_device(ranks: Ranks, wires: str) -> None:
    """The one flag that says so is read, and nothing was switched."""
    found = ranks.run(broken_row, wires, 0)
    (culprit,) = [refusal for refusal, _ in found if "here" in refusal]
    assert "rows differ from their source, first expert 6 from rank 2" in culprit
    assert all(not switched for _, switched in found)


def bound_again(wires: str) -> None:
    device = device_of(wires)
    model = Model(np.tile(np.arange(12), (2, 1)), 3, False, device)
    shuffler = model.shuffler(PLACES, *groups(wires))
    again = Model(model.phy2log, 3, False, device)
    shuffler.rebind([expert_rows(layer, 3) for layer in again.tensors])
    shuffler._switch = again.switch
    shuffler.begin(again.phy2log.copy(), np.roll(again.phy2log, 3, axis=1))
    shuffler.finish()
    again.check()
    assert again.switched


@pytest.mark.parametrize("wires", ON_A_DEVICE)
def test_tensors_that_were_made_anew(ranks: Ranks, wires: str) -> None:
    """Move as the first ones would have."""
    ranks.run(bound_again, wires)
