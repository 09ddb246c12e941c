"""Rows read by NIXL out of the memory of the rank that sends them, without a kernel on the device.

The sender tells the receiver where its message lies; the receiver reads it into its staging rows, and NIXL tells the
sender when it has. So no rank ever writes another's memory: what a rank does late, or after all others gave it up,
cannot damage theirs. Messages between two ranks are counted, and a note about another one is not taken for this one's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...errors import mismatch
from ..layout import ExpertRows
from ..limits import Budget
from .base import Pending, Wires

_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds between two questions to NIXL
_UNDER_WAY: set[_Read] = set()  # with the memory that NIXL may write: one that was given up stays here
T = TypeVar("T")


@dataclass(frozen=True)
class Nixl:
    """What an engine lends: NIXL's `nixl_agent` class, and a CPU group over which the ranks' agents are introduced."""

    agent: Callable[[str], Any]
    group: dist.ProcessGroup


@dataclass(frozen=True)
class _Peer:
    """What a rank says of its agent at the start."""

    name: str
    metadata: bytes
    device: int


class NixlWires(Wires):
    """On the layers' device (DRAM or VRAM), in the background: no kernel communicates, so no stream waits for another.

    Made collectively, over the CPU group: raises PluginError, on every rank, if one of them cannot.
    """

    def __init__(self, nixl: Nixl, layers: Sequence[ExpertRows], budget: Budget) -> None:
        device = layers[0].device
        super().__init__(nixl.group, layers, budget, name="NIXL", background=True, device=device)
        self._kind, self._device = "DRAM" if device.type == "cpu" else "VRAM", device.index or 0
        self.agent: Any = None
        self._peers = _on_all(nixl.group, self._open, nixl)
        _on_all(nixl.group, self._meet, self._peers)
        self._rank_of = {peer.name: rank for rank, peer in enumerate(self._peers)}
        self._sent, self._received = ([0] * len(self._peers) for _ in range(2))  # messages, by peer
        self._notes: dict[tuple[int, str, int], list[int]] = {}  # (peer, kind, message) -> what it says

    def start(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> Sequence[Pending]:
        """Waits until the peer has its message ready, so that it travels while the next one is packed."""
        flight: list[Pending] = []
        if len(sent):
            if sent.device.type != "cpu":  # NIXL knows no streams
                torch.accelerator.current_stream(sent.device).synchronize()
            self._sent[peer] += 1
            note = f"packed {self._sent[peer]} {sent.data_ptr()} {len(sent)}"
            self.agent.send_notif(self._peers[peer].name, note.encode())
        if len(received):
            flight.append(self._read(peer, received))
        if len(sent):  # last: the peer has read it, too, only after it was told where
            flight.append(_Sent(self, peer, self._sent[peer]))
        return flight

    def note(self, peer: int, kind: str, message: int, timeout: timedelta) -> list[int]:
        """What a peer says of a message. Raises TimeoutError if it says nothing in time."""
        return self.until(lambda: self._look_up(peer, kind, message), f"rank {peer}: {kind} {message}", timeout)

    def until(self, ask: Callable[[], T | None], what: str, timeout: timedelta) -> T:
        """Raises TimeoutError."""
        deadline, pause = time.monotonic() + timeout.total_seconds(), _SHORTEST
        while (answer := ask()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"NIXL, {what}: nothing in {timeout.total_seconds()} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        return answer

    def _look_up(self, peer: int, kind: str, message: int) -> list[int] | None:
        for name, notes in self.agent.get_new_notifs().items():
            for note in notes:
                which, number, *rest = note.decode().split()
                self._notes[self._rank_of[name], which, int(number)] = [int(word) for word in rest]
        return self._notes.pop((peer, kind, message), None)

    def _read(self, peer: int, received: torch.Tensor) -> _Read:
        self._received[peer] += 1
        number, size = self._received[peer], len(received)
        address, offered = self.note(peer, "packed", number, self.deadline)
        if offered != size:
            raise RuntimeError(f"message {number} of rank {peer} has {offered} bytes, expected {size}")
        ends = (received.data_ptr(), size, self._device), (address, size, self._peers[peer].device)
        here, there = (self.agent.get_xfer_descs([end], self._kind) for end in ends)
        done = f"read {number}".encode()
        handle = self.agent.initialize_xfer("READ", here, there, self._peers[peer].name, done)
        read = _Read(self, handle, f"reading message {number} of rank {peer}")
        _UNDER_WAY.add(read)
        self.agent.transfer(handle)
        return read

    def _open(self, nixl: Nixl) -> _Peer:
        name = f"eplb-plugin-{self.rank}-{uuid.uuid4().hex[:12]}"
        self.agent = nixl.agent(name)
        self.agent.register_memory([self.staging, self.outgoing])  # until the agent ends
        return _Peer(name, self.agent.get_agent_metadata(), self._device)

    def _meet(self, peers: Sequence[_Peer]) -> None:
        for rank, peer in enumerate(peers):
            if rank != self.rank:
                self.agent.add_remote_agent(peer.metadata)


def _on_all(group: dist.ProcessGroup, action: Callable[..., T], *args: Any) -> list[T]:
    """Collective: what the action returns, by rank. Raises PluginError on every rank if it raises on one."""
    answers: list[Any] = [None] * dist.get_world_size(group)
    try:
        answer: tuple[T | None, str] = action(*args), ""
    except Exception as error:
        answer = None, f"{type(error).__name__}: {error}"
    dist.all_gather_object(answers, answer, group=group)
    for rank, (_, problem) in enumerate(answers):
        if problem:
            fix = "repair NIXL there, or have the engine use another communicator"
            raise mismatch(f"NIXL on rank {rank}", found=problem, expected="an agent that reaches all others", fix=fix)
    return [value for value, _ in answers]


@dataclass(frozen=True, eq=False)
class _Read:
    """A message that is being read; asking how far it is also tells the peer when it has been."""

    wires: NixlWires
    handle: Any
    what: str

    def wait(self, timeout: timedelta, /) -> None:
        state = self.wires.until(self._over, self.what, timeout)
        _UNDER_WAY.discard(self)
        self.wires.agent.release_xfer_handle(self.handle)
        if state != "DONE":
            raise RuntimeError(f"NIXL, {self.what}: {state}")

    def _over(self) -> str | None:
        state: str = self.wires.agent.check_xfer_state(self.handle)
        return None if state == "PROC" else state


@dataclass(frozen=True, eq=False)
class _Sent:
    """A message that the peer reads: its memory is in use until the peer has."""

    wires: NixlWires
    peer: int
    number: int

    def wait(self, timeout: timedelta, /) -> None:
        self.wires.note(self.peer, "read", self.number, timeout)
