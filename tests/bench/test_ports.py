"""A server's port stays its own until the server binds it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from eplb_plugin.bench import ports
from eplb_plugin.bench.ports import free_port


def test_the_kernel_gives_it_to_nobody_else() -> None:
    """Neither the port nor the one behind it is of those that a listener without a wish, or a client, is given."""
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(100):
        port = free_port()
        assert not {port, port + 1} & set(range(lowest, highest + 1))


@pytest.mark.parametrize("behind", [0, 1])
def test_taken_ports_are_passed_over(monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    """Also where only the port behind it is taken."""
    first = next(port for port in ports._RANGE if all(map(ports._is_free, range(port, port + 4))))
    monkeypatch.setattr(ports, "_RANGE", range(first, first + 4, 2))
    assert {free_port() for _ in range(50)} == {first, first + 2}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first + behind))
        listener.listen()
        assert {free_port() for _ in range(50)} == {first + 2}


def test_no_range_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Machines whose kernel gives away every port have servers, too."""
    whole = tmp_path / "range"
    whole.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", whole)
    assert free_port() in ports._RANGE


def test_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line instead of a port that is not free."""
    port = free_port()
    monkeypatch.setattr(ports, "_RANGE", range(port, port + 1))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="found no free port"):
            free_port()
