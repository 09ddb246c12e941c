"""Network namespaces as nodes, each behind one link whose rate can be limited in both directions.

All links meet in a switch, a namespace of its own, so nothing of this touches the machine's network but one pair of
addresses: the first node has a second, unlimited link to the outside, by which clients reach it, so that what they
send is not counted as traffic between nodes. Needs root, iproute2 and the kernel's veth, bridge and tbf.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

_BURST = 3200  # bytes; a larger one lets a decode step's messages pass unlimited
_QUEUE = "8mb"  # long enough to drop nothing: a lost packet would be measured instead of the rate
_PREFIX = "eplb"
_LOCK = Path("/run/eplb-plugin-network.lock")  # two networks at once would give the outside link's addresses twice
_OUTSIDE, _HEAD = "169.254.77.1", "169.254.77.2"  # link-local: no route of the machine uses them


class NetworkError(RuntimeError):
    """No namespaces can be made here, or a command that makes them failed; one line."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that passed a node's link since it was made, as its interface at the switch counted them."""

    sent: int
    received: int

    def since(self, before: Traffic) -> Traffic:
        return Traffic(self.sent - before.sent, self.received - before.received)


class Network:
    """Context manager: `nodes` namespaces, removed on leaving with whatever a killed run left before."""

    def __init__(self, nodes: int) -> None:
        if not 1 <= nodes <= 250:
            raise NetworkError(f"found {nodes} nodes, expected 1 to 250")
        self.nodes = nodes
        self._switch = f"{_PREFIX}-{os.getpid()}-switch"
        self._names = [f"{_PREFIX}-{os.getpid()}-{node}" for node in range(nodes)]
        self._outside = f"{_PREFIX}{os.getpid()}"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Network:
        require_namespaces()
        self._lock = _locked()
        try:
            remove_abandoned()
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def address(self, node: int) -> str:
        """Under which the other nodes know it."""
        return f"10.77.0.{node + 1}"

    @property
    def head(self) -> str:
        """The first node's address for clients outside."""
        return _HEAD

    def inside(self, node: int, command: Sequence[str]) -> list[str]:
        """The command on a node: its network, and a /dev/shm of its own, as another machine would have.

        Engines look whether they share memory to find out whether they share a node.
        """
        own_memory = 'mount -t tmpfs -o size=2g tmpfs /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", self._names[node], "sh", "-c", own_memory, "node", *command]

    def limit(self, megabits: float | None) -> None:
        """Every link's rate in both directions, in Mbit/s; None: no limit."""
        for node, name in enumerate(self._names):
            for namespace, device in ((name, "uplink"), (self._switch, f"port{node}")):
                _run("tc", "-n", namespace, "qdisc", "delete", "dev", device, "root", may_fail=True)
                if megabits is not None:
                    rate = ("rate", f"{megabits * 1e6:.0f}bit", "burst", str(_BURST), "limit", _QUEUE)
                    _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *rate)

    def traffic(self) -> list[Traffic]:
        """Of every node's link so far. Ethernet frames count, so headers and acknowledgements do as well."""
        table = _run("ip", "netns", "exec", self._switch, "cat", "/proc/net/dev")
        counters = {}
        for line in table.splitlines()[2:]:
            device, numbers = line.split(":")
            counters[device.strip()] = [int(number) for number in numbers.split()]
        # what the switch receives from a port, the node has sent
        return [
            Traffic(sent=counters[f"port{node}"][0], received=counters[f"port{node}"][8]) for node in range(self.nodes)
        ]

    def _make(self) -> None:
        _run("ip", "netns", "add", self._switch)
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for node, name in enumerate(self._names):
            port = f"port{node}"
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "uplink", "netns", name)
            _run("ip", "-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", name, "address", "add", f"{self.address(node)}/24", "dev", "uplink")
            _run("ip", "-n", name, "link", "set", "uplink", "up")
        _run("ip", "link", "add", self._outside, "type", "veth", "peer", "name", "outside", "netns", self._names[0])
        for where, device, address in (([], self._outside, _OUTSIDE), (["-n", self._names[0]], "outside", _HEAD)):
            _run("ip", *where, "address", "add", f"{address}/30", "dev", device)
            _run("ip", *where, "link", "set", device, "up")

    def _remove(self) -> None:
        _run("ip", "link", "delete", self._outside, may_fail=True)
        for name in (*self._names, self._switch):
            _run("ip", "netns", "delete", name, may_fail=True)
        if self._lock is not None:
            self._lock.close()


def require_namespaces() -> None:
    """Raises NetworkError where namespaces cannot be made."""
    if missing := [program for program in ("ip", "tc") if shutil.which(program) is None]:
        raise NetworkError(f"found no {' and no '.join(missing)}, expected iproute2: install it")
    if os.geteuid() != 0:
        raise NetworkError("found an ordinary user, expected root: network namespaces need it, run this with sudo")


def remove_abandoned() -> None:
    """End what still runs on the nodes of runs that were killed, and remove their namespaces."""
    for name in abandoned(_run("ip", "netns", "list")):
        for pid in _run("ip", "netns", "pids", name, may_fail=True).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", name, may_fail=True)


def abandoned(listing: str) -> list[str]:
    """Names, in what `ip netns list` prints, of namespaces whose run no longer exists."""
    names = [line.split()[0] for line in listing.splitlines() if line.strip()]
    parts = [(name, name.split("-")) for name in names]
    return [
        name
        for name, words in parts
        if len(words) == 3 and words[0] == _PREFIX and words[1].isdigit() and not Path("/proc", words[1]).exists()
    ]


def _locked() -> IO[str]:
    lock = _LOCK.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise NetworkError("found another run with nodes on this machine, expected none: wait for it to end") from None
    return lock


def _run(*command: str, may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and not may_fail:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
