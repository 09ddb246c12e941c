"""Weights that moved between real processes, over gloo and NIXL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_plugin import PluginError, Topology
from eplb_plugin.migration import transfer
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.wires.group import GroupWires
from expert_models import NO_NIXL, WIRES, Log, Model, groups
from processes import Ranks
from strategies import QUICK, migrations

SIZES = (2, 3, 4, 8)
SOME = [*((size, "gloo") for size in SIZES), *(pytest.param(size, "nixl", marks=NO_NIXL) for size in (3, 8))]


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Ranks]]:
    """Processes by their number, reused by all examples."""
    started: dict[int, Ranks] = {}
    try:
        yield started
    finally:
        for ranks in started.values():
            ranks.close()


def pool(pools: dict[int, Ranks], size: int) -> Ranks:
    if size in pools and not pools[size].alive:  # after a failure, so that Hypothesis can go on
        pools.pop(size).close()
    if size not in pools:
        pools[size] = Ranks(size)
    return pools[size]


def migrate(
    wires: str, old: Any, new: Any, topology: Topology, budget: Budget,
    stepwise: bool, long_rows: bool, planned: bool = False, scarce: bool = False,
) -> int:  # fmt: skip
    """-> steps; the weights, the maps and the addresses are checked here, after every step.

    planned: the new placement is not known before some steps, later on some ranks. scarce: there is only just enough
    memory, so that layers take several hops.
    """
    model = Model(old, topology.slots_per_rank, long_rows)
    budget = replace(budget, staging_bytes=model.least_staging() if scarce else None)
    shuffler = model.shuffler(topology, *groups(wires), budget)
    assert not scarce or shuffler.wires.nbytes <= model.least_staging()
    steps = 0
    shuffler.begin(old, (lambda: (time.sleep(0.01 * model.rank), new)[1]) if planned else new)
    if stepwise:
        while shuffler.step():
            steps += 1
            model.check()
            assert all(set(row) == set(before) for row, before in zip(model.phy2log, old, strict=True))
    else:
        shuffler.finish()
    model.check()
    assert shuffler.refusal == ""
    assert np.array_equal(model.phy2log, new)
    changes = (np.asarray(old) != new).any(axis=1)
    moved, stay = np.flatnonzero(changes).tolist(), np.flatnonzero(~changes).tolist()
    switched = [layer for layers in model.switched for layer in layers]
    assert list(dict.fromkeys(switched)) == moved + stay
    assert scarce or len(switched) == len(old)
    assert all(len(layers) <= budget.layers_per_step or layers == stay for layers in model.switched)
    return steps


@pytest.mark.parametrize(("size", "wires"), SOME)
@given(data=st.data())
@settings(QUICK, max_examples=20)
def test_any_placement_becomes_any_other(pools: dict[int, Ranks], size: int, wires: str, data: st.DataObject) -> None:
    """Every row of every kind of tensor is right, bit for bit, after every step, and no tensor has a new address."""
    old, new, topology = data.draw(migrations(size))
    budget = Budget(
        layers_per_step=data.draw(st.integers(1, 3)),
        bytes_per_step=data.draw(st.sampled_from([None, 1, 2000])),
        message_bytes=data.draw(st.sampled_from([1, 1500, 1 << 20])),
    )
    flags = [data.draw(st.booleans()) for _ in ("stepwise", "long_rows", "planned", "scarce")]
    pool(pools, size).run(migrate, wires, old, new, topology, budget, *flags)


@pytest.mark.full
@pytest.mark.parametrize("wires", WIRES)
@pytest.mark.parametrize("size", SIZES)
@given(data=st.data())
@settings(QUICK, max_examples=400)
def test_any_placement_becomes_any_other_at_length(
    pools: dict[int, Ranks], size: int, wires: str, data: st.DataObject
) -> None:
    """The same, for longer."""
    old, new, topology = data.draw(migrations(size, max_layers=6))
    budget = Budget(data.draw(st.integers(1, 4)), None, data.draw(st.sampled_from([1, 1500, 1 << 20])))
    flags = [data.draw(st.booleans()) for _ in ("stepwise", "long_rows", "planned", "scarce")]
    pool(pools, size).run(migrate, wires, old, new, topology, budget, *flags)


def rotated(layers: int, topology: Topology, by: int) -> np.ndarray[Any, Any]:
    slots = np.arange(topology.num_slots, dtype=np.int32)
    return np.stack([(slots + by * (layer + 1)) % topology.num_slots for layer in range(layers)])


def test_one_layer_a_step(pools: dict[int, Ranks]) -> None:
    """A layer is switched on each step once the first is staged; begin and vote take a few steps more."""
    topology = Topology(2, 1, 4)
    args = ("gloo", rotated(12, topology, 0), rotated(12, topology, 1), topology, Budget(), True, False)
    steps = pool(pools, 2).run(migrate, *args)
    assert len(set(steps)) == 1
    assert steps[0] >= 12


@pytest.mark.parametrize("wires", WIRES)
def test_a_layer_takes_several_hops(pools: dict[int, Ranks], wires: str) -> None:
    """Six slots a rank all change, two at a time: every step's maps and bytes agree, and every expert is held."""
    topology = Topology(2, 1, 6)
    args = (wires, rotated(1, topology, 0), rotated(1, topology, 1), topology, Budget(), True, False, False, True)
    assert min(pool(pools, 2).run(migrate, *args)) >= 6  # one layer: each hop is staged after the one before


def struck_between_hops(topology: Topology) -> tuple[str, Any]:
    """-> why it was refused, and where the layers were then."""
    old, new = rotated(3, topology, 0), rotated(3, topology, 1)
    model = Model(old, topology.slots_per_rank)
    shuffler = model.shuffler(topology, *groups(), Budget(staging_bytes=model.least_staging()))
    seal = transfer.seal

    def damaged(rows: torch.Tensor, *args: Any) -> None:
        seal(rows, *args)
        if model.rank == 1 and len(model.switched) >= 4:
            rows[0, 0] ^= 1

    transfer.seal = damaged
    shuffler.begin(old, new)
    while shuffler.step():
        model.check()
    transfer.seal = seal
    refusal, found = shuffler.refusal, model.phy2log.copy()
    model.check()
    shuffler.begin(found, new)
    shuffler.finish()
    model.check()
    assert np.array_equal(model.phy2log, new)
    return refusal, found


def test_a_failure_between_two_hops(pools: dict[int, Ranks]) -> None:
    """Layers stay where they are then, on all ranks alike; the next migration goes on from there."""
    topology = Topology(2, 1, 6)
    old, new = rotated(3, topology, 0), rotated(3, topology, 1)
    (why, found), (_, same) = pool(pools, 2).run(struck_between_hops, topology)
    assert "rank 0 refused" in why
    assert np.array_equal(found, same)
    assert ((found != old).any(axis=1) & (found != new).any(axis=1)).any()
    assert all(sorted(row) == sorted(before) for row, before in zip(found, old, strict=True))


def many(wires: str, rounds: int, topology: Topology) -> None:
    rng = np.random.default_rng(0)
    old = rotated(4, topology, 0)
    model = Model(old, topology.slots_per_rank)
    shuffler = model.shuffler(topology, *groups(wires))
    for _ in range(rounds):
        new = rng.permuted(model.phy2log, axis=1)
        shuffler.begin(model.phy2log.copy(), new)
        while shuffler.step():
            pass
        assert np.array_equal(model.phy2log, new)
        model.check()


@pytest.mark.parametrize("wires", WIRES)
def test_many_migrations_one_after_the_other(pools: dict[int, Ranks], wires: str) -> None:
    """Fifty in a row by one Shuffler: nothing of one is left over for the next."""
    pool(pools, 4).run(many, wires, 50, Topology(2, 2, 3))


def nothing_to_do(topology: Topology) -> list[str]:
    old = rotated(2, topology, 0)
    model = Model(old, topology.slots_per_rank)
    shuffler = model.shuffler(topology, *groups())
    with Log() as log:
        shuffler.begin(old, old)
        assert not shuffler.step()
        shuffler.finish()
        assert model.switched == [[0, 1]]
        shuffler.begin(old, lambda: old)
        shuffler.finish()
        assert model.switched == [[0, 1], [0, 1]]
    return log.lines


def test_nothing_to_move(pools: dict[int, Ranks]) -> None:
    """An equal placement is put in force without a word, one that must be planned first after a vote."""
    assert pool(pools, 2).run(nothing_to_do, Topology(1, 2, 3)) == [[], []]


def planned_late(topology: Topology, failing: int) -> tuple[bool, str]:
    """-> whether another migration may follow, and why this one was refused. Rank `failing` cannot plan."""
    old, go = rotated(2, topology, 0), threading.Event()
    model = Model(old, topology.slots_per_rank)
    shuffler = model.shuffler(topology, *groups(), Budget(planning_seconds=0.2))

    def plan() -> np.ndarray[Any, Any]:
        assert go.wait(30)
        if model.rank == failing:
            raise OSError("no answer")
        return rotated(2, topology, 1)

    shuffler.begin(old, plan)
    began, steps = time.monotonic(), 0
    while shuffler.step():
        steps += 1
        if (steps == 5 and failing >= 0) or time.monotonic() - began > 0.5:
            go.set()
    assert model.switched == []
    model.check()
    intact, reason = shuffler.wires.intact, shuffler.refusal
    if intact:
        shuffler.begin(old, rotated(2, topology, 1))
        shuffler.finish()
        model.check()
        assert shuffler.refusal == ""
    return intact, reason


def test_a_plan_that_does_not_come_is_refused_by_all(pools: dict[int, Ranks]) -> None:
    """One that raises on a rank, for good, for ranks may be out of step; one that is late, until the next."""
    found = pool(pools, 2).run(planned_late, Topology(1, 2, 3), 1)
    assert found == [(False, "rank 1 refused"), (False, "rank 1 refused; here: planning: OSError: no answer")]
    assert {intact for intact, _ in pool(pools, 2).run(planned_late, Topology(1, 2, 3), -1)} == {True}


def announced(topology: Topology) -> list[str]:
    old, new = rotated(2, topology, 0), rotated(2, topology, 1)
    model = Model(old, topology.slots_per_rank)
    with Log() as log:
        shuffler = model.shuffler(topology, *groups(), Budget(message_bytes=1))
        widest = max(rows.row_bytes for rows in shuffler.layers)
        assert shuffler.wires.nbytes == 2 * topology.slots_per_rank * widest + 2 * widest
        shuffler.begin(old, new)
        assert not model.switched
        shuffler.finish()
    return log.lines


def test_memory_and_traffic_are_stated_first(pools: dict[int, Ranks]) -> None:
    """Staging memory when it is made, bytes between ranks and nodes before any moves."""
    lines = pool(pools, 2).run(announced, Topology(2, 1, 3))[0]
    assert lines[0].startswith("migration over gloo: 0.0 MiB of staging memory on cpu, at most 1 layers")
    assert "2 of 2 layers" in lines[1]
    assert "between nodes" in lines[1]


def under_way(topology: Topology) -> None:
    old, new = rotated(2, topology, 0), rotated(2, topology, 1)
    model = Model(old, topology.slots_per_rank)
    shuffler = model.shuffler(topology, *groups())
    shuffler.begin(old, new)
    with pytest.raises(PluginError, match="one under way"):
        shuffler.begin(old, new)
    shuffler.finish()
    model.check()
    other = Topology(1, topology.num_ranks, topology.slots_per_rank + 1)
    with pytest.raises(PluginError, match="slots of the expert tensors"):
        model.shuffler(other, *groups())
    with pytest.raises(PluginError, match="ranks of the groups"):
        model.shuffler(Topology(1, topology.num_ranks + 1, topology.slots_per_rank), *groups())
    least = model.least_staging()
    with pytest.raises(PluginError, match=f"staging_bytes: found {least - 1}, expected at least {least}, 6 experts"):
        model.shuffler(topology, *groups(), Budget(staging_bytes=least - 1))


def test_misuse_is_refused(pools: dict[int, Ranks]) -> None:
    """A second migration during one, tensors or groups of another topology, too little memory: one line each."""
    pool(pools, 2).run(under_way, Topology(1, 2, 3))


def inference(topology: Topology) -> None:
    with torch.inference_mode():
        model = Model(rotated(2, topology, 0), topology.slots_per_rank)
        shuffler = model.shuffler(topology, *groups())
    shuffler.begin(model.phy2log.copy(), rotated(2, topology, 1))
    while shuffler.step():
        pass
    model.check()
    assert len(model.switched) == 2


def test_tensors_of_inference_mode(pools: dict[int, Ranks]) -> None:
    """Engines load weights in inference mode, in which alone they may be written; steps need not be in it."""
    pool(pools, 2).run(inference, Topology(1, 2, 3))


def on_the_stream(topology: Topology, scarce: bool) -> None:
    names = {thread.name for thread in threading.enumerate()}
    start, callers = GroupWires.start, set()

    def seen(*args: Any) -> Any:
        callers.add(threading.current_thread().name)
        return start(*args)

    backend, dist.get_backend = dist.get_backend, lambda group: "nccl"
    GroupWires.start = seen  # type: ignore[method-assign]
    try:
        old, new = rotated(5, topology, 0), rotated(5, topology, 1)
        migrate("gloo", old, new, topology, Budget(), True, False, False, scarce)
    finally:
        dist.get_backend, GroupWires.start = backend, start  # type: ignore[method-assign]
    assert callers <= names


def test_rows_on_the_engines_stream(pools: dict[int, Ranks]) -> None:
    """What a backend other than gloo gets: transfers inside `step`, one batch at a time, on the caller's thread."""
    pool(pools, 4).run(on_the_stream, Topology(2, 2, 3), False)
    pool(pools, 4).run(on_the_stream, Topology(1, 4, 6), True)


@pytest.mark.parametrize("field", ["layers_per_step", "bytes_per_step", "transfer_seconds"])
def test_budget_must_be_positive(field: str) -> None:
    """A bound of 0 would never end."""
    with pytest.raises(PluginError, match=f"budget.{field}: found 0"):
        Budget(**{field: 0})
