"""Process groups as engines make them, for checks that move and vote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import NamedTuple

import torch.distributed as dist

from .site import Site

PATIENCE = timedelta(seconds=60)  # for ranks in one collective


@contextmanager
def alone() -> Iterator[None]:
    """The default group of a process without others."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Carrier(NamedTuple):
    """rows: the group that they travel on; votes: the one beside it, of the CPU."""

    name: str
    rows: dist.ProcessGroup
    votes: dist.ProcessGroup


@cache
def carriers(site: Site) -> list[Carrier]:
    """Collective: of every backend that rows can travel on here; the last is that of the device."""

    def group(backend: str) -> dist.ProcessGroup:
        return dist.new_group(backend=backend, timeout=PATIENCE)

    return [Carrier(name, group(name), group("gloo")) for name in site.carriers]
