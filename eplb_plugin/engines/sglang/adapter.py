"""The plugin beside SGLang's EPLB: what SGLang lends (ids, maps, groups) and what it gets back (placements)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.runtime_context import get_disagg, get_exec

from ...deployment import Deployment, Phase
from ...dispatch.torch_ops import choose
from ...errors import mismatch
from ...observe.metrics import metrics
from ...placement import Placement, linear_placement
from ...plan_types import WEIGHED
from ...recording.recorder import Recorder
from ...runtime.model_entry import ModelEntry
from ...runtime.rebalancer import Rebalancer
from ...runtime.resplit_loop import ResplitLoop
from ...runtime.state_directory import Earlier
from ...runtime.warm_start import earlier
from ...settings.config import PluginConfig
from ...topology import Topology
from ..device_tables import DispatchTables, owners_of, refuse_unequal
from .bounds import as_sglang_bounds, max_tokens
from .exact import evened_layers
from .moe_layers import inspect_layers, refuse_skipping
from .mover import KEY, Mover
from .recording import Mapped, PassRecording
from .support import Layout

logger = logging.getLogger("eplb_plugin")
_PHASES: dict[str, Phase] = {"prefill": "prefill", "decode": "decode"}  # SGLang's disaggregation_mode -> ours


class Adapter:
    """One per scheduler: feeds the Rebalancer, and moves experts where it says."""

    def __init__(self, config: PluginConfig, layout: Layout, topology: Topology, experts: Any, name: str) -> None:
        config = as_sglang_bounds(config)
        self.config, self.layout, self.topology, self.name = config, layout, topology, name
        self.num_experts, self.num_groups = experts.num_logical_experts, max(1, experts.num_groups or 1)
        self.num_layers: int = experts.num_layers
        self._phase: Phase = _PHASES.get(get_disagg().disaggregation_mode, "mixed")
        self._earlier = Earlier()
        self.rebalancer = Rebalancer(config, metrics())
        self._manager: Any = None
        self._recording: PassRecording | None = None
        self._tables: DispatchTables | None = None
        self._evened: list[torch.Tensor] = []  # of every row under `exact`, see `Mapped.evened`
        self._resplitting: ResplitLoop | None = None
        self._mover: Mover | None = None
        self._mapped: dict[tuple[int, int, int], Mapped] = {}  # by row, micro-batch, and whether SGLang disables
        self._passes = -1  # since the last rebalance was over; SGLang's first interval has one more
        self._rebalancing = False
        self._loading = False  # SGLang writes the weights

    def resume(self, group: Any) -> NDArray[np.int32] | None:
        """Collective over the CPU group of all ranks, before the model is loaded: the placement of all decoder layers
        that an earlier run ended with, or that the user names; None if there is none, or SGLang is given one.
        """
        deployment = Deployment(self.name, "sglang", self._phase, self.topology, self.num_experts, None)
        self._earlier = earlier(self.config, deployment, group)
        placement = self._earlier.placement
        if placement is None:
            return None
        if get_exec().moe.init_expert_location != "trivial":
            found = f"{placement.num_layers} layers of an earlier run or initial_placement, and --init-expert-location"
            if self.config.initial_placement is not None:
                fix = "start with initial_placement or with --init-expert-location, not with both"
                raise mismatch("initial_placement", found=found, expected="one of them", fix=fix)
            logger.info("the placement in state_directory is not used: --init-expert-location names one")
            return None
        if placement.layer_ids[-1] >= self.num_layers:
            found = f"layer {placement.layer_ids[-1]}"
            problem = mismatch("placement", found=found, expected=f"< {self.num_layers}", fix="use this model's")
            if self.config.initial_placement is not None:
                raise problem
            logger.warning("not taken up from an earlier run: %s", problem)
            return None
        rows = linear_placement(self.num_layers, self.num_experts, self.topology.num_slots).phy2log
        rows[placement.layer_ids] = placement.phy2log
        return rows

    def manage(self, manager: Any) -> None:
        """SGLang has built its EPLBManager."""
        self._manager = manager
        if self.config.step_interval is not None:
            manager._rebalance_num_iterations = self.config.step_interval

    def attach(self, model: Any) -> None:
        """A model was loaded. Raises PluginError if its layers cannot be served; drafts are left alone."""
        if self._manager is None or self._manager._get_model() is not model:
            return
        layers = inspect_layers(model, self.topology.num_slots)
        entry = self._entry(layers.layer_ids)
        entry.recorder = Recorder(
            num_layers=len(layers.layer_ids),
            num_experts=self.num_experts,
            top_k=layers.top_k,
            max_tokens=max_tokens(),
            sample_rows=self.config.sample_rows,
            device=get_global_expert_location_metadata().physical_to_logical_map.device,
            num_ubatches=2 if get_exec().overlap.enable_two_batch_overlap else 1,
        )
        entry.recorder.count(False)  # what warms up and what is captured is no pass
        self._recording = PassRecording(entry.recorder, layers.layer_ids, mapped=entry.dispatch in WEIGHED)
        entry.owner_group_size = self.layout.owner_group_size
        entry.window_steps, entry.step_interval = self._window(), self._manager._rebalance_num_iterations
        world = get_world_group()
        if entry.dispatch in WEIGHED:
            self._tables = self._new_tables(entry)
            entry.table_bytes = self._tables.nbytes()
            if self.config.exact is not None:
                if self.layout.attention_dp:
                    refuse_skipping(model)
                self._evened = evened_layers(self._tables, self.config, entry.owner_group_size)
        self._mover = Mover(model, entry, self.rebalancer, self._tables)
        self.rebalancer.add(KEY, entry, planning_rank=world.rank_in_group == 0)
        self.rebalancer.recall(KEY, self._earlier.window)
        self.rebalancer.rehearse(KEY, self._mover.data)  # before SGLang gives the memory to the KV cache
        if self._tables is not None and self.rebalancer.renews(entry):
            self._resplitting = ResplitLoop(self.rebalancer, KEY, self._mover.plans, self._tables.stage)

    def _new_tables(self, entry: ModelEntry) -> DispatchTables:
        """Collective: before graphs are captured, for the placement that the model was loaded with."""
        world, metadata = get_world_group(), get_global_expert_location_metadata()
        placed = metadata.physical_to_logical_map_cpu.numpy()[entry.layer_ids].astype(np.int32)
        owners = owners_of(world.rank_in_group, entry.owner_group_size)
        in_force = entry.in_force(Placement(placed, np.array(entry.layer_ids, np.int32)))
        tolerance = None if self.config.exact is None else self.config.exact.tolerance
        tables = DispatchTables(in_force, owners, metadata.physical_to_logical_map.device, tolerance)
        refuse_unequal(tables, world.cpu_group)
        return tables

    def tables_of(self, layer_id: int) -> Mapped | None:
        """Inside the forward pass: what maps the next ids of a decoder layer; None where another rule chooses."""
        row = None if self._recording is None else self._recording.row_of(layer_id)
        if row is None or self._recording is None or self._tables is None:
            return None
        counters = self._recording.counters(row, get_global_expert_distribution_recorder())
        key = row, counters.rows.data_ptr(), counters.enabled.data_ptr()
        if key not in self._mapped:
            evened = self._evened[row] if self._evened else None
            self._mapped[key] = Mapped(self._tables.layer(row), counters, evened)
        self._mapped[key].counters = counters
        return self._mapped[key]

    def route_nothing(self, layer_id: int) -> None:
        """Inside the forward pass of a rank without tokens: of a large step it must know as the others do."""
        own = self.tables_of(layer_id) if self._evened else None
        if own is not None and own.evened is not None:
            rows = own.counters.rows
            choose(torch.empty((0, rows.shape[1]), dtype=torch.int32, device=rows.device), own.evened, own.counters)

    def _entry(self, layer_ids: list[int]) -> ModelEntry:
        return ModelEntry(
            name=self.name,
            topology=self.topology,
            policy=self.config.policy,
            num_experts=self.num_experts,
            num_groups=self.num_groups,
            layer_ids=layer_ids,
            dispatch=self.config.dispatch_among(self.layout.rules),
            engine="sglang",
            phase=self._phase,
        )

    def begin_pass(self, forward_batch: Any) -> None:
        """The coming forward pass is of the target or a draft."""
        if self._recording is not None:
            self._recording.begin(forward_batch.global_num_token_non_padded_cpu or 0)

    def stage(self, engine_recorder: Any, topk_ids: torch.Tensor) -> bool:
        """Inside the forward pass: SGLang's recorder is given [T, K] physical ids, -1 = padding. Whether it counts."""
        return self._recording is None or self._recording.stage(engine_recorder, topk_ids)

    def end_pass(self, recording: bool) -> None:
        """A forward pass of the target is over: count what it routed, or forget it if SGLang records nothing."""
        if self._recording is None:
            return
        recorder = self._recording.recorder
        recorder.fold() if recording else recorder.skip()
        self._passes += not self._rebalancing
        if self._resplitting is not None and not self._rebalancing:
            assert self._mover is not None
            interval = self._manager._rebalance_num_iterations
            if self._resplitting.end_step(interval - self._passes, self._mover.settled):
                self._passes = interval - self._window()
                self._manager._main_generator = _ends_early(self._manager, self._window())

    def count_next(self) -> None:
        """What the coming pass counts: pairs where a plan will be made from it, load alone where weights will."""
        if self._recording is None:
            return
        left = self._manager._rebalance_num_iterations - self._passes - 1
        in_window = left < self._window()
        load = in_window or (self._resplitting is not None and self._resplitting.records(left))
        self._recording.recorder.count(load and not self._rebalancing, pairs=in_window)

    def _window(self) -> int:
        buffered: int = get_exec().moe.expert_distribution_recorder_buffer_size
        return self.config.window_size or (buffered if buffered > 0 else self._manager._rebalance_num_iterations)

    def rebalance(self) -> Iterator[None]:
        """One rebalance: collective over all ranks, yields once per forward pass, idle or not, until it is over.

        The window ends here and the plan is made in the background; nothing is recorded meanwhile.
        """
        if self._mover is None:
            return
        self._rebalancing = True
        try:
            self.rebalancer.observe(KEY, self._mover.data)
            if self._is_needed() and not self._loading:
                yield from self._mover.move()
        finally:
            self._rebalancing, self._passes = False, 0
        get_global_expert_distribution_recorder()._reset()  # its counts are of slots, which hold other experts now

    def _is_needed(self) -> bool:
        """SGLang asks its own record, which it sums over all ranks for that, only if it was given a threshold."""
        average = None
        if get_exec().moe.eplb_min_rebalancing_utilization_threshold < 1:
            record = get_global_expert_distribution_recorder().dump_record(output_mode="object")
            average = record["average_utilization_rate_over_window"]
        needed: bool = self._manager._check_rebalance_needed(average)
        return needed

    def load(self, loading: bool) -> None:
        """Collective, between two passes: SGLang begins or ends to write the weights of a model."""
        if loading and self._mover is not None:
            self._mover.settle()
        self._loading = loading

    def place_first(self, load: NDArray[np.int64]) -> Placement:
        """Collective over all ranks. load: [L, E] of all decoder layers, from a file of counts.

        SGLang solves its initial placement: no model is loaded, no routing recorded yet. Dense layers, which SGLang
        counts too, keep its own start.
        """
        rows = linear_placement(len(load), self.num_experts, self.topology.num_slots).phy2log
        layer_ids = np.flatnonzero(load.any(1)).tolist()
        if not layer_ids:
            return Placement(rows)
        entry = self._entry(layer_ids)
        entry.policy = "deepseek" if self.config.policy == "deepseek" else "balanced"
        if entry.policy == "deepseek" or self.config.plan_options.is_bounded:
            entry.dispatch = "hash"  # counts do not tell what such a placement is worth under `cover`
        first = Rebalancer(self.config)
        first.entries[KEY] = entry
        plan = first.decide(KEY, rows[layer_ids], get_world_group().cpu_group, load[layer_ids])
        rows[layer_ids] = plan.placement.phy2log
        return Placement(rows)


def _ends_early(manager: Any, passes: int) -> Iterator[None]:
    """What SGLang's manager goes through, pass by pass, where its interval under way has so many left."""
    for _ in range(passes):
        yield
    yield from manager.rebalance()
    yield from manager._entrypoint()
