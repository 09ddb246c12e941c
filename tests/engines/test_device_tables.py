"""Tables of one rank: filled in place, switched when staged, and equal on ranks that route the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology, plan, resplit
from eplb_plugin.dispatch.exact.tables import exact_maps
from eplb_plugin.dispatch.tables import hashed_maps
from eplb_plugin.engines import device_tables
from eplb_plugin.engines.device_tables import DispatchTables, refuse_unequal
from eplb_plugin.errors import PluginError
from eplb_plugin.workloads.routing import ClusteredRouter
from processes import run_ranks

EXPERTS, TOPOLOGY = 16, Topology(2, 2, 6)
ROUTER = ClusteredRouter(num_layers=2, num_experts=EXPERTS, top_k=3)


def made() -> Plan:
    statistics = RoutingStatistics.from_topk(ROUTER.window(1000, 0), EXPERTS)
    return plan(statistics, TOPOLOGY, policy="balanced", dispatch="weighted")


def test_staged_tables_are_in_force_when_switched() -> None:
    """Staging touches nothing; the switch fills the rows of all layers, at the same address."""
    old = made()
    new = resplit(
        old, RoutingStatistics(old_load := ROUTER.drifted(0.9).window(1000, 1).astype(float)[:, :EXPERTS, 0] + 1)
    )
    assert old_load.shape == (2, EXPERTS)
    tables = DispatchTables(old, [1], torch.device("cpu"))
    before, address, digest = tables.rows.clone(), tables.rows.data_ptr(), tables.digest()
    switch = tables.stage(new)
    assert torch.equal(tables.rows, before)
    switch()
    assert tables.rows.data_ptr() == address
    np.testing.assert_array_equal(tables.rows.numpy(), hashed_maps(new, [1])[0])
    assert not torch.equal(tables.rows, before)
    assert tables.digest() != digest


def compared(owners_of: Sequence[Sequence[int]]) -> str:
    tables = DispatchTables(made(), owners_of[dist.get_rank()], torch.device("cpu"))
    try:
        refuse_unequal(tables, dist.group.WORLD)
    except PluginError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("owners", [[[0], [1], [2], [3]], [[0, 1], [0, 1], [2, 3], [2, 3]], [[0, 1, 2, 3]] * 4])
def test_equal_within_every_group(owners: list[list[int]]) -> None:
    """One rank a group, two (a TP group of each of two DP ranks), or all."""
    assert run_ranks(4, compared, owners) == [""] * 4


@pytest.mark.parametrize(
    "owners",
    [
        [[0, 1], [1], [2, 3], [2, 3]],  # rank 1 takes itself for the only one that routes its tokens
        [[0, 1], [0, 1], [2, 3], [3, 2]],  # they agree on who, but make other tables of it
    ],
)
def test_unequal_tables_end_the_start(owners: list[list[int]]) -> None:
    """On every rank, with the group that is at fault."""
    found = run_ranks(4, compared, owners)
    group = "[0, 1]" if owners[1] == [1] else "[2, 3]"
    assert set(found) == {found[0]}
    assert found[0].startswith(f"token-owner group {group}: found other tables on rank ")


def compared_for_exact(parted: int) -> str:
    """One rank would even steps out by another placement than it serves by."""
    started = made()
    tables = DispatchTables(started, [dist.get_rank()], torch.device("cpu"), tolerance=0.0)
    assert tables.exact is not None
    if dist.get_rank() == parted:
        other = replace(started, placement=Placement(started.placement.phy2log[:, ::-1].copy()))
        tables.exact.put(exact_maps(other, [1]), [1])
    try:
        refuse_unequal(tables, dist.group.WORLD)
    except PluginError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("parted", [-1, 2])
def test_exact_needs_equal_tables_on_all_ranks(parted: int) -> None:
    """Not only on those that route the same tokens: each gives away what is another's."""
    line = "" if parted < 0 else "exact: found other tables on rank 2 than on rank 0, expected equal tables on all"
    assert [text[: len(line) or None] for text in run_ranks(4, compared_for_exact, parted)] == [line] * 4


def test_exact_follows_moves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch fills its tables again, at the same addresses, of layers that moved; new shares leave them alone."""
    old = made()
    tables = DispatchTables(old, [1], torch.device("cpu"), tolerance=0.0)
    assert tables.exact is not None
    assert tables.nbytes() > DispatchTables(old, [1], torch.device("cpu")).nbytes()
    before = [(part.data_ptr(), part.clone()) for part in tables.exact.tensors()]
    tables.stage(resplit(old, RoutingStatistics(np.ones((2, EXPERTS)))))()
    assert all(torch.equal(part, was) for part, (_, was) in zip(tables.exact.tensors(), before, strict=True))
    rows, filled = old.placement.phy2log, []
    moved = replace(old, placement=Placement(np.stack([rows[0], rows[1, ::-1]])))
    monkeypatch.setattr(
        device_tables, "exact_maps", lambda plan, layers: filled.append(layers) or exact_maps(plan, layers)
    )
    tables.switch([0, 1], moved)
    tables.switch([0, 1], moved)
    assert filled == [[1]]
    assert [part.data_ptr() for part in tables.exact.tensors()] == [address for address, _ in before]
    for layer, one in enumerate([old, moved]):
        for part, expected in zip(tables.exact.layer(layer).maps, exact_maps(one, [layer]), strict=True):
            np.testing.assert_array_equal(part, expected[0])
