"""What all ranks must agree on before they share a plan."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..config import PluginConfig, parse_config
from ..errors import mismatch
from .settings import FLAG


def agree(config: PluginConfig | None, group: dist.ProcessGroup) -> tuple[PluginConfig, list[str]]:
    """Collective over a CPU group: the settings of all ranks, and the host of every rank.

    A rank without settings (None) takes those of the others. Raises PluginError, on every rank, if settings differ or
    nobody has any.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = boot.read_text().strip() if boot.exists() else socket.gethostname()
    gathered: list[tuple[Any, str]] = [(None, "")] * dist.get_world_size(group)
    dist.all_gather_object(gathered, (config and config.model_dump(mode="json"), host), group=group)
    given = [parse_config(values, "settings of another rank") for values, _ in gathered if values is not None]
    if not given:
        raise mismatch("settings", found="none", expected="those of at least one rank", fix=f"add {FLAG} FILE")
    if len({one.digest() for one in given}) != 1:
        raise mismatch(
            "settings",
            found=f"digests {[one.digest() for one in given]}",
            expected="equal settings on every rank",
            fix="pass the same configuration to every node",
        )
    return given[0], [host for _, host in gathered]


def own_group(ranks: list[int]) -> dist.ProcessGroup:
    """Collective over these ranks: a CPU group for one thread of ours, between whose collectives nobody else's come."""
    return dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
