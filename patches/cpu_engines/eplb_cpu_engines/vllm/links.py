"""A TCP connection between each two ranks, over which all of them talk at the same time.

Gloo wants to know sizes beforehand, which costs a round of messages of its own in every layer. Here a message begins
with its size. It goes out in one piece, so that a small one is one packet.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_SIZE = struct.Struct("<I")
_RANK = struct.Struct("<I")
_CHUNK = 1 << 20


class LinkError(RuntimeError):
    """A rank closed its connection, or said nothing for too long."""


class Links:
    """The connections of one rank. Make them on all ranks at the same time.

    host: the address that other ranks reach this one by; share: gives every rank's value of an object, in rank order;
    seconds: how long a message may take.
    """

    def __init__(self, rank: int, host: str, share: Callable[[object], list], seconds: float = 300.0) -> None:
        self.rank, self.seconds = rank, seconds
        with socket.create_server((host, 0), backlog=1024) as server:
            server.settimeout(seconds)
            addresses = share(server.getsockname()[:2])
            self._sockets: dict[int, socket.socket] = {}
            for peer, address in enumerate(addresses[:rank]):
                connection = socket.create_connection(address, timeout=seconds)
                connection.sendall(_RANK.pack(rank))
                self._sockets[peer] = connection
            for _ in addresses[rank + 1 :]:
                connection, _address = server.accept()
                connection.settimeout(seconds)
                self._sockets[_RANK.unpack(connection.recv(_RANK.size, socket.MSG_WAITALL))[0]] = connection
        for connection in self._sockets.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)

    def exchange(self, outgoing: Mapping[int, bytes], incoming: Iterable[int]) -> dict[int, bytearray]:
        """Send each message to its rank, and receive one from each rank of `incoming`; both ends must expect it.

        Raises LinkError.
        """
        sending = {rank: memoryview(_SIZE.pack(len(message)) + message) for rank, message in outgoing.items()}
        receiving = {rank: _Incoming() for rank in incoming}
        with selectors.DefaultSelector() as selector:
            for rank in sending.keys() | receiving.keys():
                selector.register(self._sockets[rank], _events(rank, sending, receiving), rank)
            while selector.get_map():
                ready = selector.select(self.seconds)
                if not ready:
                    raise LinkError(
                        f"rank {self.rank} waited {self.seconds:.0f} s for ranks {sorted(receiving)}, which should "
                        "have sent: see the logs of these"
                    )
                for key, events in ready:
                    rank = key.data
                    if events & selectors.EVENT_WRITE:
                        sending[rank] = self._send(rank, sending[rank])
                    if events & selectors.EVENT_READ:
                        self._receive(rank, receiving[rank])
                    wanted = _events(rank, sending, receiving)
                    if not wanted:
                        selector.unregister(key.fileobj)
                    elif wanted != key.events:
                        selector.modify(key.fileobj, wanted, rank)
        return {rank: message.body for rank, message in receiving.items()}

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()

    def _ready(self, rank: int, call: Callable[[Any], Any], argument: Any) -> Any:
        """What sending or receiving gives, or None if the socket was not ready after all."""
        try:
            return call(argument)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkError(f"rank {self.rank} lost its connection to rank {rank}: {error}") from error

    def _send(self, rank: int, left: memoryview) -> memoryview:
        """Send what goes; returns the rest."""
        return left[self._ready(rank, self._sockets[rank].send, left) or 0 :]

    def _receive(self, rank: int, message: _Incoming) -> None:
        # never past the end of this message: the next one may follow at once
        part = self._ready(rank, self._sockets[rank].recv, min(message.missing, _CHUNK))
        if part == b"":
            raise LinkError(f"rank {rank} closed its connection to rank {self.rank}: see its log")
        if part:
            message.add(part)


@dataclass
class _Incoming:
    """A message on its way: first its size, then its bytes."""

    head: bytearray = field(default_factory=bytearray)
    body: bytearray = field(default_factory=bytearray)

    @property
    def missing(self) -> int:
        if len(self.head) < _SIZE.size:
            return _SIZE.size - len(self.head)
        return _SIZE.unpack(self.head)[0] - len(self.body)

    def add(self, part: bytes) -> None:
        (self.head if len(self.head) < _SIZE.size else self.body).extend(part)


def _events(rank: int, sending: Mapping[int, memoryview], receiving: Mapping[int, _Incoming]) -> int:
    write = selectors.EVENT_WRITE if len(sending.get(rank, b"")) else 0
    message = receiving.get(rank)
    return write | (selectors.EVENT_READ if message is not None and message.missing else 0)
