"""The plugin beside one EplbState of vLLM: what vLLM lends (ids, maps, groups) and what it gets back (placements)."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from vllm.config.utils import compute_hash_cached
from vllm.distributed.parallel_state import get_ep_group, get_eplb_group
from vllm.v1.worker.ubatching import dbo_current_ubatch_id

from ...controller import ModelEntry, Rebalancer
from ...errors import mismatch
from ...recording.recorder import Recorder
from .layers import inspect_layers
from .state import get_active

logger = logging.getLogger("eplb_plugin")

LAYER = "_eplb_plugin_layer"  # on an EplbLayerState: how its router stages ids


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
            expert_bytes=sum(weights[0].nbytes for weights in model.expert_weights[0]),
            window_steps=self.vllm_config.parallel_config.eplb_config.window_size,
            step_interval=self.vllm_config.parallel_config.eplb_config.step_interval,
        )
        if not draft:  # drafts run several passes a step and are planned by vLLM's own load counts
            entry.recorder = self._recorder(model, layers.top_k)
            for index, router in enumerate(layers.routers):
                setattr(router.eplb_state, LAYER, _Stage(entry.recorder, index, layers.chunk))
        planning_rank = group.rank_in_group == 0
        seconds = self.rebalancer.add(compute_hash_cached(model_config), entry, planning_rank)
        if planning_rank:
            self._announce(entry, seconds)

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

    def _announce(self, entry: ModelEntry, planner_seconds: float) -> None:
        topology, recorder = entry.topology, entry.recorder
        if len(self.rebalancer.entries) == 1:
            logger.info("settings: %s", self.config.model_dump_json())
        logger.info(
            "%s: %d MoE layers, %d experts in %d slots on %d nodes x %d ranks, policy %s, "
            "token-owner groups of %d, %.1f MiB of recording buffers per rank, planner ready in %.1f s",
            entry.name, len(entry.layer_ids), entry.num_experts, topology.num_slots, topology.num_nodes,
            topology.ranks_per_node, entry.policy, entry.owner_group_size,
            (recorder.nbytes() if recorder else 0) / 2**20, planner_seconds,
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

    def end_forward(self, real: bool, in_window: bool) -> None:
        """A forward pass is over: count what it routed, or forget it (dummy, profile, outside the window)."""
        for entry in self.rebalancer.entries.values():
            if entry.recorder is not None:
                entry.recorder.fold(in_window) if real else entry.recorder.drop()

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


class PlannedPolicy:
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
