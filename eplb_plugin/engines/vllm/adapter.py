"""The plugin inside vLLM's EplbState: what vLLM lends (ids, maps, groups, a tick) and where the plan goes in.

The state and the router are hooked, never the model runner: on GPUs vLLM runs another runner (V2) than on CPU (V1), and
both call only EplbState. Expert weights are moved by vLLM's own transfer.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from vllm.config.utils import compute_hash_cached
from vllm.distributed.eplb import async_worker
from vllm.distributed.parallel_state import get_ep_group, get_eplb_group
from vllm.v1.worker.ubatching import dbo_current_ubatch_id

from ...controller import ModelEntry, Rebalancer
from ...errors import mismatch
from ...recording.recorder import Recorder
from ..hooks import Hook
from .layers import inspect_layers
from .state import get_active

logger = logging.getLogger("eplb_plugin")

_ADAPTER = "_eplb_plugin_adapter"  # on an EplbState
_LAYER = "_eplb_plugin_layer"  # on an EplbLayerState: how its router stages ids


class Adapter:
    """One per EplbState: feeds its Rebalancer and puts the Rebalancer's placement where vLLM expects its policy's."""

    def __init__(self) -> None:
        active = get_active()
        self.config, self.vllm_config = active.config, active.vllm_config
        self.rebalancer = Rebalancer(self.config)
        self._hosts = _agree(self.config.digest())

    def add(self, model: Any, model_config: Any, draft: bool) -> None:
        """Register a model that vLLM has just registered. Raises PluginError if its layers cannot be served."""
        group = get_ep_group()
        slots_per_rank = model.num_physical_experts // group.world_size
        topology = self.config.topology_for(group.world_size, slots_per_rank, self._hosts)
        layers = inspect_layers(model, self.vllm_config.parallel_config.tensor_parallel_size)
        entry = ModelEntry(
            name=f"{model_config.model}{' (draft)' if draft else ''}",
            topology=topology,
            policy="balanced" if draft else self.config.policy,
            num_experts=model.num_logical_experts,
            num_groups=max(1, model.num_expert_groups),
            layer_ids=layers.layer_ids,
            owner_group_size=layers.owner_group_size,
        )
        if not draft:  # drafts run several passes a step and are planned by vLLM's own load counts
            entry.recorder = self._recorder(model, layers.top_k)
            for index, router in enumerate(layers.routers):
                setattr(router.eplb_state, _LAYER, _Stage(entry.recorder, index, layers.chunk))
        planning_rank = group.rank_in_group == 0
        self.rebalancer.add(compute_hash_cached(model_config), entry, planning_rank)
        if planning_rank:
            self._announce(entry)

    def _recorder(self, model: Any, top_k: int) -> Recorder:
        return Recorder(
            num_layers=model.num_moe_layers,
            num_experts=model.num_logical_experts,
            top_k=top_k,
            max_tokens=self.vllm_config.scheduler_config.max_num_batched_tokens,
            sample_rows=self.config.sample_rows,
            device=model.expert_weights[0][0].device,
            num_ubatches=max(1, self.vllm_config.parallel_config.num_ubatches),
        )

    def _announce(self, entry: ModelEntry) -> None:
        topology, recorder = entry.topology, entry.recorder
        if len(self.rebalancer.entries) == 1:
            logger.info("settings: %s", self.config.model_dump_json())
        logger.info(
            "%s: %d MoE layers, %d experts in %d slots on %d nodes x %d ranks, policy %s, "
            "token-owner groups of %d, %.1f MiB of recording buffers per rank",
            entry.name, len(entry.layer_ids), entry.num_experts, topology.num_slots, topology.num_nodes,
            topology.ranks_per_node, entry.policy, entry.owner_group_size,
            (recorder.nbytes() if recorder else 0) / 2**20,
        )  # fmt: skip

    def expect(self, model_config: Any, real_tokens: int, ubatch_slices: list[Any] | None) -> None:
        """The coming forward pass has this many real tokens (in these micro-batches)."""
        entry = self.rebalancer.entries.get(compute_hash_cached(model_config))
        if entry is None or entry.recorder is None:
            return
        if ubatch_slices is None:
            counts = [real_tokens]
        else:
            slices = [part.token_slice for part in ubatch_slices]
            counts = [max(0, min(real_tokens, one.stop) - one.start) for one in slices]
        entry.recorder.expect(counts)

    def end_forward(self, counts: bool) -> None:
        """A forward pass is over: count what it routed, or forget it (dummy, profile, outside the window)."""
        for entry in self.rebalancer.entries.values():
            if entry.recorder is not None:
                entry.recorder.fold() if counts else entry.recorder.drop()

    def observe(self) -> None:
        """Collective, main thread: the window of every model ends."""
        for key in self.rebalancer.entries:
            self.rebalancer.observe(key, get_ep_group().device_group)

    def decide(self, key: str, previous: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
        """Collective over the EPLB CPU group: [L, P] int64 on CPU, as vLLM's policies return it."""
        recorded = self.rebalancer.entries[key].recorder is not None
        placement = self.rebalancer.decide(
            key, previous.numpy(), get_eplb_group().cpu_group, None if recorded else load.numpy()
        )
        return torch.from_numpy(placement).long()


class _Stage:
    """Stages the ids of one layer; held by the layer's EplbLayerState."""

    def __init__(self, recorder: Recorder, index: int, chunk: int) -> None:
        self.recorder, self.index, self.chunk = recorder, index, chunk

    def __call__(self, topk_ids: torch.Tensor, real_tokens: list[torch.Tensor]) -> None:
        ubatch = dbo_current_ubatch_id()
        self.recorder.stage_rows(self.index, topk_ids, real_tokens[ubatch], self.chunk, ubatch)


class _PlannedPolicy:
    """Stands in for vLLM's policy during one synchronous rearrange, which asks once per model, in order."""

    def __init__(self, adapter: Adapter, keys: list[str]) -> None:
        self._adapter, self._keys = adapter, iter(keys)

    def rebalance_experts(
        self, weight: torch.Tensor, replicas: int, groups: int, nodes: int, ranks: int, old: torch.Tensor
    ) -> torch.Tensor:
        return self._adapter.decide(next(self._keys), old, weight)


def _agree(digest: str) -> list[str]:
    """Collective: all ranks run with equal settings; returns the host of every rank.

    Raises PluginError, on every rank, if the settings differ.
    """
    group = get_eplb_group().cpu_group
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = boot.read_text().strip() if boot.exists() else socket.gethostname()
    gathered: list[tuple[str, str]] = [("", "")] * dist.get_world_size(group)
    dist.all_gather_object(gathered, (digest, host), group=group)
    if len({one for one, _ in gathered}) != 1:
        raise mismatch(
            "settings",
            found=f"digests {[one for one, _ in gathered]}",
            expected="equal settings on every rank",
            fix="pass the same configuration to every node",
        )
    return [host for _, host in gathered]


def _add_model(original: Callable[..., Any], self: Any, model: Any, model_config: Any, model_name: Any = None) -> None:
    original(self, model, model_config, model_name)
    if not hasattr(self, _ADAPTER):
        setattr(self, _ADAPTER, Adapter())
    getattr(self, _ADAPTER).add(model, model_config, draft=model_name is not None)


def _prepare_forward(
    original: Callable[..., Any], self: Any, model_config: Any, num_unpadded_tokens: int, ubatch_slices: Any = None
) -> None:
    original(self, model_config, num_unpadded_tokens, ubatch_slices)
    getattr(self, _ADAPTER).expect(model_config, num_unpadded_tokens, ubatch_slices)


def _apply_eplb_mapping(original: Callable[..., Any], self: Any, topk_ids: torch.Tensor) -> Any:
    stage = getattr(self.eplb_state, _LAYER, None)
    if stage is not None:
        stage(topk_ids, self.eplb_state.num_unpadded_tokens_tensors)
    return original(self, topk_ids)


def _step(
    original: Callable[..., Any], self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False
) -> Any:
    counts = not is_dummy and not is_profile and self._should_record_current_step()
    getattr(self, _ADAPTER).end_forward(counts)
    return original(self, is_dummy, is_profile, log_stats)


def _rearrange(
    original: Callable[..., Any],
    self: Any,
    is_profile: bool = False,
    rank_mapping: dict[int, int] | None = None,
    use_last_expert_load: bool = False,
) -> Any:
    if is_profile:  # vLLM reserves memory for the largest move; no placement is planned
        return original(self, is_profile, rank_mapping, use_last_expert_load)
    adapter: Adapter = getattr(self, _ADAPTER)
    adapter.observe()
    vanilla, self.policy = self.policy, _PlannedPolicy(adapter, list(self.model_states))
    try:
        return original(self, is_profile, rank_mapping, use_last_expert_load)
    finally:
        self.policy = vanilla


def _run_rebalance_experts(
    original: Callable[..., Any],
    model_state: Any,
    eplb_state: Any,
    physical_to_logical_map_cpu: torch.Tensor,
    stream: Any,
) -> torch.Tensor:
    key = next(key for key, state in eplb_state.model_states.items() if state is model_state)
    with async_worker.device_stream(stream):
        load = model_state.eplb_stats.global_expert_load_window.cpu()
    return getattr(eplb_state, _ADAPTER).decide(key, physical_to_logical_map_cpu, load)  # type: ignore[no-any-return]


_STATE = "vllm.distributed.eplb.eplb_state:EplbState"

RUNTIME = (
    Hook(
        f"{_STATE}.add_model",
        "around",
        "registers each model, target and draft, with its recorder",
        "(self, model, model_config, model_name=None)",
        _add_model,
    ),
    Hook(
        f"{_STATE}.prepare_forward",
        "around",
        "tells the host how many tokens of the coming forward pass are real",
        "(self, model_config, num_unpadded_tokens, ubatch_slices=None)",
        _prepare_forward,
    ),
    Hook(
        f"{_STATE}.step",
        "around",
        "counts what a forward pass routed, or drops it if the pass was a dummy or outside the window",
        "(self, is_dummy=False, is_profile=False, log_stats=False)",
        _step,
    ),
    Hook(
        f"{_STATE}.rearrange",
        "around",
        "ends the window on every rank at the same step and, in sync mode, plans instead of vLLM's policy",
        "(self, is_profile=False, rank_mapping=None, use_last_expert_load=False)",
        _rearrange,
    ),
    Hook(
        "vllm.distributed.eplb.async_worker:run_rebalance_experts",
        "replace",
        "in async mode, plans in vLLM's background thread instead of vLLM's policy",
        "(model_state, eplb_state, physical_to_logical_map_cpu, stream)",
        _run_rebalance_experts,
    ),
    Hook(
        "vllm.model_executor.layers.fused_moe.router.base_router:BaseRouter._apply_eplb_mapping",
        "around",
        "sees the logical top-k ids before vLLM maps them to physical experts",
        "(self, topk_ids)",
        _apply_eplb_mapping,
    ),
)
