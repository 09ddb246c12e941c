"""Rows over a process group: messages of unequal sizes each way, and a peer that says nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from eplb_plugin.migration.layout import expert_rows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.wires.group import GroupWires
from processes import run_ranks

SIZES = [(64, 16), (16, 64), (48, 0), (0, 48)]  # bytes that the lower and the higher rank of a pair send


def wires(seconds: float) -> GroupWires:
    rows, group = expert_rows({"w13_weight": torch.zeros(4, 64)}, 4), dist.new_group(timeout=timedelta(minutes=10))
    made = GroupWires(group, [rows], Budget(transfer_seconds=seconds))
    made.meet()
    assert made.name == "gloo"
    assert made.background
    assert made.staging.device.type == "cpu"
    return made


def exchanged() -> None:
    made = wires(30.0)
    for turn, sizes in enumerate(SIZES):
        for shift in range(3):
            peer = (shift - made.rank) % 3
            if peer == made.rank:
                continue
            given, taken = sizes if made.rank < peer else sizes[::-1]
            made.staging.zero_()
            flight = made.start(
                peer, made.outgoing[turn % 2, :given].fill_(10 * turn + made.rank), made.staging[1, :taken]
            )
            made.wait(flight)
            assert made.staging[1].tolist() == [10 * turn + peer] * taken + [0] * (made.half_bytes - taken)
            assert not made.staging[0].any()


def test_each_way_has_its_own_size() -> None:
    """Or one way has none at all; only the memory that was given for it is written."""
    run_ranks(3, exchanged)


def silent() -> None:
    made = wires(0.3)
    if made.rank == 0:
        assert made.deadline == timedelta(seconds=0.3)
        flight = made.start(1, made.outgoing[0, :0], made.staging[0, :16])
        with pytest.raises(RuntimeError):
            made.wait(flight)
        made.give_up()
        assert not made.intact


def test_a_silent_peer_is_waited_for_no_longer_than_the_deadline() -> None:
    """That of the budget, not the group's of minutes."""
    run_ranks(2, silent, timeout=30.0)
