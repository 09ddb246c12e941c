"""What all ranks must agree on before they share a plan."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..errors import mismatch
from ..settings.config import PluginConfig, parse_config
from .settings import DISABLE, FLAG

PRESENT_SECONDS = 120.0
INSTALL = f"install eplb-plugin on every node; unset {DISABLE} there, and let VLLM_PLUGINS name eplb_plugin"


def agree_on_settings(config: PluginConfig | None, group: dist.ProcessGroup) -> tuple[PluginConfig, list[str]]:
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


def all_present(group: dist.ProcessGroup, seconds: float = PRESENT_SECONDS) -> None:
    """On ranks that have just made this group together: the plugin is active on all of them.

    They leave word in the store of the default group, for a collective would wait for ever for a rank without the
    plugin, which does not come. Raises PluginError, on every rank with it, after `seconds`.
    """
    store = dist.distributed_c10d._get_default_store()
    keys = {rank: f"eplb_plugin/active/{rank}" for rank in dist.get_process_group_ranks(group)}
    try:
        store.set(keys[dist.get_rank()], "")
        store.wait(list(keys.values()), timedelta(seconds=seconds))
    except RuntimeError:  # PyTorch's DistStoreError is one
        found = f"not active on ranks {_silent(store, keys)} of {len(keys)}"
        raise mismatch("plugin", found=found, expected="active on every rank", fix=INSTALL) from None


def _silent(store: Any, keys: dict[int, str]) -> list[int] | str:
    try:
        return [rank for rank, key in keys.items() if not store.check([key])]
    except RuntimeError:  # the rank that holds the store was as quick to end
        return "that another rank names"
