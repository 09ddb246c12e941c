"""Ports for servers, which bind them long after they were chosen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

# Every other one: vLLM's data-parallel ranks meet at the port behind a server's. SGLang takes its own above 22000.
_RANGE = range(12000, 20000, 2)
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port that is free together with the next one, below those that the kernel gives away by itself (where it keeps
    none back, any).

    An engine reads its model first. Meanwhile its own processes listen on dozens of ports of the kernel's choice
    (gloo, ZeroMQ): if one of them is given the server's, that listener takes connections and never answers them.
    Raises OSError if there is none.
    """
    below = int(_EPHEMERAL.read_text().split()[0])
    ports = [port for port in _RANGE if port + 1 < below] or list(_RANGE)
    for port in random.sample(ports, len(ports)):
        if _is_free(port) and _is_free(port + 1):
            return port
    raise OSError(f"found no free port from {ports[0]} to {ports[-1]}, expected one: end what listens there")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
