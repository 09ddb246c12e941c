"""The plugin beside SGLang's EPLB: what SGLang lends (ids, maps, groups) and what it gets back (placements)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.model_executor.forward_context import get_forward_context, has_forward_context
from sglang.srt.runtime_context import get_exec, get_schedule, get_spec

from ...config import PluginConfig
from ...controller import Rebalancer
from ...model_entry import ModelEntry
from ...observe.metrics import metrics
from ...placement import Placement, linear_placement
from ...recording.recorder import Recorder
from ...resplitting import Resplitting
from ...topology import Topology
from ..agreement import own_group
from ..tables import DispatchTables, refuse_unequal
from .layers import inspect_layers, refuse_immovable
from .layout import Layout

KEY = "target"  # SGLang rebalances one model per process: its drafts have no EPLB


class Adapter:
    """One per scheduler: feeds the Rebalancer, and puts its placement where SGLang expects its algorithm's."""

    def __init__(self, config: PluginConfig, layout: Layout, topology: Topology, experts: Any, name: str) -> None:
        self.config, self.layout, self.topology, self.name = config, layout, topology, name
        self.num_experts, self.num_groups = experts.num_logical_experts, max(1, experts.num_groups or 1)
        self.rebalancer = Rebalancer(config, metrics())
        self._manager: Any = None
        self._recorder: Recorder | None = None
        self._tables: DispatchTables | None = None
        self._resplitting: Resplitting | None = None
        self._row_of: dict[int, int] = {}  # decoder-layer number -> row of the recorder
        self._calls: dict[int, int] = {}  # per row, in this pass: micro-batches route one after the other
        self._stale = False  # rows were staged outside a pass, by a warm-up or while a graph was captured
        self._passes = 0  # since the window's start

    def manage(self, manager: Any) -> None:
        """SGLang has built its EPLBManager."""
        self._manager = manager
        if self.config.step_interval is not None:
            manager._rebalance_num_iterations = self.config.step_interval

    def attach(self, model: Any) -> None:
        """A model was loaded. Raises PluginError if its layers cannot be served; drafts are left alone."""
        if self._manager is None or self._manager._get_model() is not model:
            return
        refuse_immovable(model)
        layers = inspect_layers(model, self.topology.num_slots)
        self._row_of = {layer: row for row, layer in enumerate(layers.layer_ids)}
        self._recorder = Recorder(
            num_layers=len(layers.layer_ids),
            num_experts=self.num_experts,
            top_k=layers.top_k,
            max_tokens=_max_tokens(),
            sample_rows=self.config.sample_rows,
            device=get_global_expert_location_metadata().physical_to_logical_map.device,
            num_ubatches=2 if get_exec().overlap.enable_two_batch_overlap else 1,
        )
        entry = self._entry(layers.layer_ids)
        entry.recorder, entry.owner_group_size = self._recorder, self.layout.owner_group_size
        entry.window_steps, entry.step_interval = self._window(), self._manager._rebalance_num_iterations
        world = get_world_group()
        if entry.dispatch == "weighted":
            self._tables = self._new_tables(entry)
            entry.table_bytes = self._tables.nbytes()
        self.rebalancer.add(KEY, entry, planning_rank=world.rank_in_group == 0)
        if self._tables is not None and self.rebalancer.renews(entry):
            self._resplitting = Resplitting(self.rebalancer, KEY, own_group(world.ranks), self._tables.stage)

    def _new_tables(self, entry: ModelEntry) -> DispatchTables:
        """Collective: before graphs are captured, for the placement that the model was loaded with."""
        world, metadata = get_world_group(), get_global_expert_location_metadata()
        placed = metadata.physical_to_logical_map_cpu.numpy()[entry.layer_ids].astype(np.int32)
        first = world.rank_in_group - world.rank_in_group % entry.owner_group_size
        owners = range(first, first + entry.owner_group_size)
        in_force = entry.in_force(Placement(placed, np.array(entry.layer_ids, np.int32)))
        tables = DispatchTables(in_force, owners, metadata.physical_to_logical_map.device)
        refuse_unequal(tables, world.cpu_group)
        return tables

    def rows_of(self, layer_id: int) -> torch.Tensor | None:
        """[E, entries] of a decoder layer's tables; None where SGLang chooses by itself."""
        row = self._row_of.get(layer_id)
        return None if self._tables is None or row is None else self._tables.rows[row]

    def refill(self, metadata: Any, layer_ids: list[int]) -> None:
        """The experts of these decoder layers have moved, and SGLang's maps say so."""
        if self._tables is None:
            return
        for layer in set(layer_ids) & set(self._row_of):
            row = self._row_of[layer]
            self._tables.refill(metadata.physical_to_logical_map_cpu[[layer]].numpy(), range(row, row + 1))

    def _entry(self, layer_ids: list[int]) -> ModelEntry:
        return ModelEntry(
            name=self.name,
            topology=self.topology,
            policy=self.config.policy,
            num_experts=self.num_experts,
            num_groups=self.num_groups,
            layer_ids=layer_ids,
            dispatch=self.config.dispatch_among(self.layout.rules),
        )

    def begin_pass(self, forward_batch: Any) -> None:
        """The coming forward pass, of the target or a draft, has this many real tokens at most."""
        if self._recorder is None:
            return
        if self._stale:
            self._recorder.drop()
            self._stale = False
        self._calls.clear()
        tokens = forward_batch.global_num_token_non_padded_cpu or 0
        self._recorder.expect([tokens] * len(self._recorder.stage))

    def stage(self, engine_recorder: Any, topk_ids: torch.Tensor) -> None:
        """Inside the forward pass, also while a graph is captured: keep [T, K] physical ids, -1 = padding."""
        layer = engine_recorder._current_layer_idx.value
        row = self._row_of.get(layer)
        if row is None or engine_recorder._disable_all:
            return
        assert self._recorder is not None
        self._stale = self._stale or engine_recorder._current_forward_pass_id.value is None
        ubatch = self._calls.get(row, 0) % len(self._recorder.stage)
        self._calls[row] = self._calls.get(row, 0) + 1
        phy2log = engine_recorder._expert_location_metadata.physical_to_logical_map[layer]
        self._recorder.stage_rows(row, logical_ids(topk_ids, phy2log), _real_rows(), ubatch=ubatch)

    def end_pass(self, recording: bool) -> None:
        """A forward pass of the target is over: count what it routed, or forget it outside the window."""
        if self._recorder is None:
            return
        self._passes += 1
        left, resplitting = self._passes_between() - self._passes, self._resplitting
        in_window = left < self._window() or (resplitting is not None and resplitting.records(left))
        self._recorder.fold(recording and in_window)
        if resplitting is not None:
            resplitting.end_step(left, moving=self._passes <= self._passes_moving())

    def _passes_between(self) -> int:
        """Forward passes from one rebalance to the next."""
        interval: int = self._manager._rebalance_num_iterations
        return interval + self._passes_moving()

    def _passes_moving(self) -> int:
        """In chunks, a rebalance takes one pass for each. Asked only where it matters: weights may not be loaded."""
        if self._window_set() == 0:
            return 0
        chunks = len(self._manager._compute_update_layer_ids_chunks())
        return chunks if chunks > 1 else 0

    def _window(self) -> int:
        return self._window_set() or self._passes_between()

    def _window_set(self) -> int:
        """Passes of a window that does not fill the interval; 0: it does."""
        buffered: int = get_exec().moe.expert_distribution_recorder_buffer_size
        passes = self.config.window_size or buffered
        return passes if 0 < passes < self._manager._rebalance_num_iterations else 0

    def end_window(self) -> None:
        """Collective over all ranks."""
        self._passes = 0
        if KEY in self.rebalancer.entries:
            self.rebalancer.observe(KEY, get_world_group().device_group)

    def plan(self, load: NDArray[np.int64]) -> Placement:
        """Collective over all ranks. load: [L, E] of all decoder layers, by SGLang's own count.

        The placement of all decoder layers: SGLang also counts the dense ones, which keep the rows they have.
        """
        metadata = get_global_expert_location_metadata()
        return self._plan_first(load) if metadata is None else self._plan_next(metadata)

    def _plan_first(self, load: NDArray[np.int64]) -> Placement:
        """SGLang solves its initial placement from a file of counts: no model is loaded, no routing recorded yet."""
        rows = linear_placement(len(load), self.num_experts, self.topology.num_slots).phy2log
        layer_ids = np.flatnonzero(load.any(1)).tolist()
        if not layer_ids:
            return Placement(rows)
        entry = self._entry(layer_ids)
        entry.policy = "deepseek" if self.config.policy == "deepseek" else "balanced"
        first = Rebalancer(self.config)
        first.entries[KEY] = entry
        plan = first.decide(KEY, rows[layer_ids], get_world_group().cpu_group, load[layer_ids])
        return _with_rows(rows, layer_ids, plan.placement)

    def _plan_next(self, metadata: Any) -> Placement:
        entry, rows = self.rebalancer.entries[KEY], metadata.physical_to_logical_map_cpu.numpy()
        weights = self._manager._get_model().routed_experts_weights_of_layer[entry.layer_ids[0]]
        entry.expert_bytes = sum(one[0].nbytes for one in weights)
        plan = self.rebalancer.decide(KEY, rows[entry.layer_ids], get_world_group().cpu_group)
        if self._tables is not None:
            self._tables.plan = plan
        return _with_rows(rows, entry.layer_ids, plan.placement)


def _with_rows(rows: NDArray[Any], layer_ids: list[int], placement: Placement) -> Placement:
    """All decoder layers: those of `placement` at their numbers, the others as in `rows`."""
    placed = rows.copy()
    placed[layer_ids] = placement.phy2log
    return Placement(placed)


def logical_ids(topk_ids: torch.Tensor, phy2log: torch.Tensor) -> torch.Tensor:
    """[T, K] logical ids of physical ones; what names no routed slot (padding, shared experts) is -1."""
    routed = (topk_ids >= 0) & (topk_ids < phy2log.shape[0])
    return torch.where(routed, phy2log[topk_ids.masked_fill(~routed, 0).long()], -1)


def _real_rows() -> torch.Tensor | None:
    """Scalar tensor of how many rows of the layer's input are real, in a graph its static buffer; None: all."""
    bound = get_forward_context().moe_num_token_non_padded if has_forward_context() else None
    return bound() if bound is not None else None


def _max_tokens() -> int:
    """Rows that one forward pass of a rank may route; what is above is not recorded."""
    schedule, drafted = get_schedule(), get_spec().speculative_num_draft_tokens or 1
    prefill = schedule.chunked_prefill_size or 0
    return max(prefill if prefill > 0 else schedule.max_prefill_tokens, (schedule.max_running_requests or 0) * drafted)
