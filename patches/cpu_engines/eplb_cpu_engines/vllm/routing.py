"""Logical to physical expert ids, and the recording of load: on a CPU vLLM leaves the ids as they are.

The same arithmetic as the engine's GPU kernel: a token takes the replica that a multiplicative hash of its position in
the batch names, and padded tokens are mapped but not counted.
"""

import torch
import vllm.model_executor.layers.fused_moe.router.base_router as target

from ..patching import replace

_KNUTH = 2654435769  # floor(2**32 / golden ratio)
_PARAMETERS = (
    "topk_ids, expert_load_view, logical_to_physical_map, logical_replica_count, record_enabled, num_unpadded_tokens"
)


def install() -> None:
    replace(target, "eplb_map_to_physical_and_record", _PARAMETERS, lambda _: map_to_physical_and_record)


def map_to_physical_and_record(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """topk_ids: [tokens, k] logical, -1 = none; returns their physical ids, and adds them to the load in place.

    expert_load_view: [physical] int32; logical_to_physical_map: [logical, replicas], -1 = none;
    logical_replica_count: [logical]; record_enabled, num_unpadded_tokens: scalars.
    """
    logical = topk_ids.long()
    known = (logical >= 0) & (logical < logical_replica_count.shape[0])
    logical = logical.where(known, 0)
    position = torch.arange(topk_ids.shape[0])[:, None]
    replica = (position * _KNUTH & 0xFFFFFFFF) % logical_replica_count[logical].clamp(min=1)
    physical = logical_to_physical_map[logical, replica].long().where(known, -1)

    counted = record_enabled & (physical >= 0)
    if num_unpadded_tokens is not None:
        counted = counted & (position < num_unpadded_tokens)
    expert_load_view.scatter_add_(0, physical.clamp(min=0).flatten(), counted.flatten().to(expert_load_view.dtype))
    return physical.to(topk_ids.dtype)
