"""From logical to physical expert ids: the one function by which vLLM maps them, and which three of its modules hold.

It is called inside the forward pass, also while a graph is captured, and names no layer; a layer is known by the
address of its replica map, which never changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.v1.worker.ubatching import dbo_current_ubatch_id

from ...dispatch.buffers import Counters, LayerTables
from ...dispatch.kernels import cover, record
from ...recording.recorder import Recorder
from .. import hooks
from ..exchange import Exact
from ..hooks import Hook
from .compat import MAPS, maps_by_name

Mapping = Callable[..., torch.Tensor]


class MappedLayer:
    """One layer of a model that is recorded. tables: of rule `cover`; None: vLLM's own lookup maps the ids.

    chunk: under sequence parallelism this rank routes the chunk-th part of the batch. exact: for large steps.
    """

    def __init__(
        self, index: int, recorder: Recorder, chunk: int, tables: LayerTables | None, exact: Exact | None = None
    ) -> None:
        self.index, self.recorder, self.chunk, self.tables, self.exact = index, recorder, chunk, tables, exact

    def __call__(
        self, original: Mapping, ids: torch.Tensor, load: torch.Tensor, maps: tuple[torch.Tensor, torch.Tensor],
        enabled: torch.Tensor, real: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        recorder = self.recorder
        passing, tokens = (
            recorder.passing(self.index, dbo_current_ubatch_id()),
            recorder.unbounded if real is None else real,
        )
        # vLLM counts in its own window alone; the plugin has others too, and switches of its own
        switches = recorder.counting, recorder.counting_pairs, enabled
        counters = Counters(*passing, load, *switches, tokens, self.chunk)
        if self.exact is not None and largest_batch(ids) >= self.exact.min_tokens:
            return self.exact.map(ids, counters)
        if self.tables is not None:
            return cover(ids, self.tables, counters)
        record(ids, counters)
        return original(ids, load, *maps, enabled, real)


def largest_batch(ids: torch.Tensor) -> int:
    """Tokens of the largest batch that a data-parallel rank has in this step, padding too: the same on every rank,
    idle ones too, and on the host. A captured graph has one size, so that it holds for its replays.
    """
    metadata = get_forward_context().dp_metadata if is_forward_context_available() else None
    return len(ids) if metadata is None else int(metadata.num_tokens_across_dp_cpu.max())


_layers: dict[int, MappedLayer] = {}  # by the address of the replica map


def register(replica_map: torch.Tensor, layer: MappedLayer) -> None:
    _layers[replica_map.data_ptr()] = layer


def map_and_record(
    original: Mapping,
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    maps = logical_to_physical_map, logical_replica_count
    layer = _layers.get(logical_to_physical_map.data_ptr())
    if layer is None:  # a draft model's: vLLM counts its load
        return original(topk_ids, expert_load_view, *maps, record_enabled, num_unpadded_tokens)
    return layer(original, topk_ids, expert_load_view, maps, record_enabled, num_unpadded_tokens)


def _hook(module: str, why: str) -> Hook:
    parameters = "topk_ids, expert_load_view, logical_to_physical_map, logical_replica_count, record_enabled"
    return Hook(f"{module}:{MAPS}", "around", why, f"({parameters}, num_unpadded_tokens=None)", map_and_record)


ROUTER = _hook(
    "vllm.model_executor.layers.fused_moe.router.base_router",
    "sees the logical top-k ids; maps them itself under dispatch: cover",
)
BY_NAME = (  # MegaMoE layers have no router; which module holds the function depends on the release
    _hook("vllm.model_executor.layers.fused_moe.deep_gemm_mega_moe", "the same in MegaMoE layers"),
    _hook("vllm.models.deepseek_v4.nvidia.model", "the same in DeepSeek-V4, which imports the function by name"),
    _hook("vllm.models.kimi_k3.nvidia.model", "the same in Kimi-K3"),
)


def hook_by_name() -> None:
    """Once a model is loaded: hook those modules of BY_NAME that it brought. Raises PluginError if one does not fit."""
    hooks.apply(held_by_name())


def held_by_name() -> list[Hook]:
    """Those of BY_NAME whose modules are loaded and hold the function."""
    return [hook for hook in BY_NAME if maps_by_name(hook.target.partition(":")[0])]
