"""What expert rows travel on: NIXL, NCCL or gloo, as vLLM's own transfers would."""

from __future__ import annotations

import torch.distributed as dist
from vllm.distributed import nixl_utils
from vllm.distributed.parallel_state import GroupCoordinator

from ...migration.wires.nixl import Nixl

_ON_THE_DEVICE = ("torch_nccl", "pynccl", "torch_xccl")


def row_carrier(communicator: str | None, eplb_group: GroupCoordinator) -> dist.ProcessGroup | Nixl:
    """communicator: of vLLM's EPLBConfig, as asked for or as vLLM chose it by what is installed.

    The device's group only where vLLM says so: it refuses that beside a background thread, for NCCL on two streams can
    hang, and gloo is its default.
    """
    if communicator == "nixl" and nixl_utils.NixlWrapper is not None:  # asked for, imports NIXL
        return Nixl(nixl_utils.NixlWrapper, eplb_group.cpu_group)
    return eplb_group.device_group if communicator in _ON_THE_DEVICE else eplb_group.cpu_group
