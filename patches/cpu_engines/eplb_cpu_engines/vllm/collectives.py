"""The two collectives with unequal sizes that data parallelism needs; vLLM's CPU communicator has neither."""

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from ..patching import replace, require


def install() -> None:
    for name, function in (("all_gatherv", all_gatherv), ("reduce_scatterv", reduce_scatterv)):
        have = name in vars(CpuCommunicator)
        require(f"CpuCommunicator without {name}", f"CpuCommunicator {'with' if have else 'without'} {name}")
        replace(CpuCommunicator, name, "self, input_, dim, sizes", lambda _, function=function: function)


def all_gatherv(
    self: CpuCommunicator, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
) -> torch.Tensor | list[torch.Tensor]:
    """All ranks' rows in rank order. input_: [sizes[rank], ...], or a list of such; returns [sum(sizes), ...]."""
    _require_rows(dim)
    if isinstance(input_, list):
        return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
    sizes = sizes or [input_.shape[0]] * self.world_size
    output = input_.new_empty(sum(sizes), *input_.shape[1:])
    # An all-to-all, because Gloo's all-gather wants equal sizes: every rank is sent the same rows.
    copies = input_.repeat(self.world_size, *[1] * (input_.dim() - 1))
    dist.all_to_all_single(output, copies, sizes, [input_.shape[0]] * self.world_size, group=self.device_group)
    return output


def reduce_scatterv(
    self: CpuCommunicator, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
) -> torch.Tensor:
    """This rank's rows, summed over ranks. input_: [sum(sizes), ...]; returns [sizes[rank], ...]."""
    _require_rows(dim)
    sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
    own = sizes[self.rank_in_group]
    parts = input_.new_empty(self.world_size * own, *input_.shape[1:])
    dist.all_to_all_single(parts, input_.contiguous(), [own] * self.world_size, sizes, group=self.device_group)
    return parts.view(self.world_size, own, *input_.shape[1:]).sum(0)


def _require_rows(dim: int) -> None:
    if dim != 0:
        raise NotImplementedError(f"found dim={dim}, expected 0: vLLM's MoE layers gather and scatter rows only")
