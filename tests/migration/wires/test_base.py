"""What all wires share: their memory, the first messages, and that nothing travels on broken ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eplb_plugin import PluginError
from eplb_plugin.migration.layout import ExpertRows, expert_rows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.wires.base import Pending, Wires

ROWS = expert_rows({"w13_weight": torch.zeros(4, 10)}, 4)
WIDER = expert_rows({"w13_weight": torch.zeros(4, 100)}, 4)


class Arrived:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.waited = error, timedelta()

    def wait(self, timeout: timedelta, /) -> None:
        self.waited = timeout
        if self.error:
            raise self.error


class Echo(Wires):
    """A peer in the same process, which sends what `answer` makes of its rank."""

    def __init__(self, group: Any, layers: Sequence[ExpertRows], budget: Budget, background: bool = True) -> None:
        super().__init__(group, layers, budget, name="echo", background=background, device=torch.device("cpu"))
        self.peers: list[int] = []
        self.sent: list[int] = []
        self.flights: list[Arrived] = []
        self.error: Exception | None = None
        self.damaged = -1

    def start(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> Sequence[Pending]:
        self.peers.append(peer)
        self.sent += sent.view(torch.int64).unique().tolist()
        received.view(torch.int64).fill_(peer)
        if peer == self.damaged:
            received[-1] ^= 1
        self.flights.append(Arrived(self.error))
        return self.flights[-1:]


def test_memory_is_shared_by_halves_and_buffers(alone: dist.ProcessGroup) -> None:
    """Two of each in the background, one of each otherwise, in rows of the widest layer, within the budget."""
    bytes_of_ten = 10 * WIDER.row_bytes
    for background, count in ((True, 2), (False, 1)):
        wires = Echo(alone, [ROWS, WIDER], Budget(staging_bytes=bytes_of_ten), background)
        assert wires.halves == len(wires.staging) == len(wires.outgoing) == count
        assert wires.staging.shape[1] == wires.half_bytes
        assert wires.outgoing.shape[1] == wires.message_bytes
        assert wires.half_bytes % WIDER.row_bytes == wires.message_bytes % WIDER.row_bytes == 0
        assert wires.half_bytes >= 2 * WIDER.row_bytes
        assert wires.nbytes == count * (wires.half_bytes + wires.message_bytes) <= bytes_of_ten


def test_every_pair_meets_once(alone: dist.ProcessGroup) -> None:
    """In turns in which each rank has one peer; then messages have `transfer_seconds`, not the time of a start."""
    ahead = []
    for rank in range(5):
        wires = Echo(alone, [ROWS], Budget(transfer_seconds=3.5))
        wires.rank, wires.size = rank, 5
        assert wires.deadline > timedelta(minutes=1)
        wires.meet()
        assert sorted(wires.peers) == [other for other in range(5) if other != rank]
        assert set(wires.sent) == {rank}
        assert all(flight.waited > timedelta(minutes=1) for flight in wires.flights)
        assert wires.deadline == timedelta(seconds=3.5)
        ahead.append(wires.peers)
    while any(ahead):  # each goes on when its peer is there as well
        met = [rank for rank, peers in enumerate(ahead) if peers and ahead[peers[0]][:1] == [rank]]
        assert met, "all wait for one another"
        for rank in met:
            ahead[rank] = ahead[rank][1:]


def test_other_bytes_are_refused_at_the_start(alone: dist.ProcessGroup) -> None:
    """One line, with how much was wrong."""
    wires = Echo(alone, [ROWS], Budget())
    wires.size, wires.damaged = 3, 2
    with pytest.raises(PluginError, match="first messages of rank 0 over echo: found 1 wrong words, expected every"):
        wires.meet()


@pytest.mark.parametrize("error", [RuntimeError("no\nroute"), TimeoutError("no\nroute")])
def test_a_first_message_that_does_not_come_is_refused(alone: dist.ProcessGroup, error: Exception) -> None:
    """With what the transport said, in one line."""
    wires = Echo(alone, [ROWS], Budget())
    wires.size, wires.error = 2, error
    with pytest.raises(PluginError, match=f"rank 0 over echo: found {type(error).__name__}: no route, expected"):
        wires.meet()


def test_wires_that_were_given_up_stay_so(alone: dist.ProcessGroup) -> None:
    """`intact` is what a rank says of them in its votes."""
    wires = Echo(alone, [ROWS], Budget())
    assert wires.intact
    wires.give_up()
    assert not wires.intact
