"""The plugin beside one EplbState of vLLM: what vLLM lends (ids, maps, groups) and what it gets back (placements)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from vllm.config.utils import compute_hash_cached
from vllm.distributed.parallel_state import get_ep_group, get_eplb_group

from ...deployment import Phase
from ...migration.unmoved import refuse_unequal_values
from ...observe.metrics import metrics
from ...placement import Placement
from ...recording.recorder import Recorder
from ...runtime.cycle import Cycle
from ...runtime.model_entry import ModelEntry
from ...runtime.rebalancer import Rebalancer
from ...runtime.resplit_loop import ResplitLoop
from ..device_tables import owners_of, refuse_unequal
from ..exchange import Exact, exchange_among
from ..startup_agreement import agree_on_settings
from .communicator import row_carrier
from .dispatch_hook import MappedLayer, hook_by_name, register
from .moe_layers import inspect_layers, left_behind, movable
from .state import before_sleep, get_active
from .support import DISPATCH
from .tables import Tables


class Adapter:
    """One per EplbState: feeds its Rebalancer, and lends it the weights and the groups to move experts with.

    Planning uses vLLM's EPLB group, which vLLM keeps for a background thread; so do, by turns, rows (or NIXL) and new
    weights (of the target alone: drafts have none). Votes are the main thread's, on the EP CPU group, where vLLM asks
    every step whether all ranks have transferred a layer.
    """

    def __init__(self) -> None:
        active = get_active()
        self.vllm_config = active.vllm_config
        self.config, self._hosts = agree_on_settings(active.config, get_eplb_group().cpu_group)
        self.rebalancer = Rebalancer(self.config, metrics())
        self.serving = False  # warm-up is over, and graphs are captured
        self.resumes = False  # a placement waits for the first rebalance, on every rank
        self.cycle = Cycle(self.rebalancer, get_eplb_group().cpu_group)
        before_sleep(self.cycle.finish)
        self._resplitting: dict[str, ResplitLoop] = {}

    def add(self, model_state: Any, model_config: Any, draft: bool) -> None:
        """Register a model that vLLM has just registered. Raises PluginError if its layers cannot be served."""
        model = model_state.model
        group = get_ep_group()
        slots_per_rank = model.num_physical_experts // group.world_size
        topology = self.config.topology_for(group.world_size, slots_per_rank, self._hosts)
        layers = inspect_layers(model, self.vllm_config.parallel_config.tensor_parallel_size)
        hook_by_name()
        rule = self.config.dispatch_among(DISPATCH)
        if draft and rule == "cover":  # its weights come from recorded tokens, and a draft's are not
            rule = "weighted"
        weights = [movable(layer) for layer in model.moe_layers]
        refuse_unequal_values(lambda: left_behind(model.moe_layers), get_eplb_group().cpu_group)
        entry = ModelEntry(
            name=f"{model_config.model}{' (draft)' if draft else ''}",
            topology=topology,
            policy="balanced" if draft else self.config.policy,
            dispatch=rule,
            num_experts=model.num_logical_experts,
            num_groups=max(1, model.num_expert_groups),
            layer_ids=layers.layer_ids,
            owner_group_size=layers.owner_group_size,
            expert_bytes=weights[0].expert_bytes,
            window_steps=self.vllm_config.parallel_config.eplb_config.window_size,
            step_interval=self.vllm_config.parallel_config.eplb_config.step_interval,
            engine="vllm",
            phase=_phase(self.vllm_config.kv_transfer_config),
        )
        if not draft:  # drafts run several passes a step and are planned by vLLM's own load counts
            entry.recorder = self._recorder(model, layers.top_k)
        placed = Placement(model_state.physical_to_logical_map.cpu().numpy(), np.array(layers.layer_ids, np.int32))
        plan = entry.in_force(placed)
        owners, exact = owners_of(group.rank_in_group, layers.owner_group_size), None if draft else self.config.exact
        tables = Tables(plan, owners, model_state, exact.tolerance if exact else None)
        exchange = exchange_among(group.device_group, layers.owner_group_size, self.config.migration.vote_seconds)
        if entry.recorder is not None:
            for index, state in enumerate(layers.states):
                cover = None if tables.cover is None else tables.cover.layer(index)
                even = Exact(tables.exact.layer(index), exchange, exact.min_tokens) if tables.exact and exact else None
                register(state.logical_to_physical_map, MappedLayer(index, entry.recorder, layers.chunk, cover, even))
        entry.table_bytes = tables.nbytes()
        key = compute_hash_cached(model_config)
        self.rebalancer.add(key, entry, planning_rank=group.rank_in_group == 0)
        self.resumes |= self.rebalancer.resume(key, get_eplb_group().cpu_group)
        data = row_carrier(self.vllm_config.parallel_config.eplb_config.communicator, get_eplb_group())
        self.cycle.add(key, weights, plan, data=data, votes=group.cpu_group, switch=tables.switch)
        refuse_unequal(tables, get_eplb_group().cpu_group)
        if self.rebalancer.renews(entry):
            self._resplitting[key] = ResplitLoop(self.rebalancer, key, get_eplb_group().cpu_group, tables.stage)

    def _recorder(self, model: Any, top_k: int) -> Recorder:
        recorder = Recorder(
            num_layers=model.num_moe_layers,
            num_experts=model.num_logical_experts,
            top_k=top_k,
            max_tokens=self.vllm_config.scheduler_config.max_num_batched_tokens,
            sample_rows=self.config.sample_rows,
            device=model.expert_weights[0][0].device,
            num_ubatches=max(1, self.vllm_config.parallel_config.num_ubatches),
        )
        recorder.count(False)  # until warm-up is over
        return recorder

    def begin_serving(self, model_states: Iterable[Any]) -> None:
        """Warm-up is over: what vLLM counted in it, which plans for drafts would be made from, is forgotten."""
        for model_state in model_states:
            model_state.expert_load_pass.zero_()
        self.serving = True

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
        if entry.recorder.expecting:  # no step followed: that pass was a trial
            entry.recorder.drop()
        entry.recorder.expect(counts)

    def end_forward(self, real: bool) -> None:
        """A forward pass is over: count what it routed, or forget it (a dummy's)."""
        for recorder in self._recorders():
            recorder.fold() if real else recorder.skip()

    def count(self, in_window: bool, steps_left: int) -> None:
        """What the coming pass counts. in_window: a plan will be made from it; steps_left: see ResplitLoop.records."""
        load = in_window or any(one.records(steps_left) for one in self._resplitting.values())
        for recorder in self._recorders():
            recorder.count(load, pairs=in_window)

    def _recorders(self) -> list[Recorder]:
        return [entry.recorder for entry in self.rebalancer.entries.values() if entry.recorder is not None]

    def end_step(self, steps_left: int) -> bool:
        """An engine step is over, a dummy one too: the same one on every rank. See ResplitLoop."""
        return any([one.end_step(steps_left, self.cycle.settled(key)) for key, one in self._resplitting.items()])

    def rehearse(self) -> None:
        """Collective: a snapshot of nothing, whose memory is in use while vLLM measures how much is left."""
        for key in self.rebalancer.entries:
            self.rebalancer.rehearse(key, get_ep_group().device_group)

    def rebalance(self, model_states: dict[str, Any], background: bool) -> None:
        """Collective, main thread: the window of every model ends, and what comes of it begins (or is over)."""
        loads = {}
        for key, entry in self.rebalancer.entries.items():
            if entry.recorder is None:
                loads[key] = _counted_load(model_states[key])
            self.rebalancer.observe(key, get_ep_group().device_group)
        (self.cycle.begin if background else self.cycle.run)(loads)


def _counted_load(model_state: Any) -> NDArray[np.int64]:
    """Collective: [L, E], vLLM's own count of the window."""
    load = model_state.expert_load_window.sum(dim=0)
    dist.all_reduce(load, group=get_ep_group().device_group)
    logical = load.new_zeros(len(load), model_state.model.num_logical_experts)
    return logical.scatter_add_(1, model_state.physical_to_logical_map.long(), load).cpu().numpy()


def _phase(transfer: Any) -> Phase:
    """The server's role in a disaggregated deployment; transfer: vLLM's KVTransferConfig or None."""
    role = getattr(transfer, "kv_role", None)
    return "prefill" if role == "kv_producer" else "decode" if role == "kv_consumer" else "mixed"
