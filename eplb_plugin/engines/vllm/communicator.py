"""What expert rows travel on: NIXL where vLLM's own transfers would, otherwise vLLM's EPLB group."""

from __future__ import annotations

import torch.distributed as dist
from vllm.distributed import nixl_utils
from vllm.distributed.parallel_state import GroupCoordinator

from ...migration.nixl_wires import Nixl


def row_carrier(communicator: str | None, eplb_group: GroupCoordinator) -> dist.ProcessGroup | Nixl:
    """communicator: of vLLM's EPLBConfig, as asked for or as vLLM chose it by what is installed."""
    if communicator == "nixl" and nixl_utils.NixlWrapper is not None:  # asked for, imports NIXL
        return Nixl(nixl_utils.NixlWrapper, eplb_group.cpu_group)
    return eplb_group.device_group
