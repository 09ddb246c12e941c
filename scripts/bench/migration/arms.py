"""The shufflers under test, in one rank of a gloo group. Every arm has its own copy of the weights.

run(old, new) moves the weights and switches the maps, and says what it took on this rank; `stall` is the longest time
that the thread which would run the model was held up at once. plan(old, new) says how long it only plans.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .rows import NODES, RANKS, Row


def weights(row: Row) -> list[list[torch.Tensor]]:
    """[L][tensors] of [slots, …]."""
    rows = [[(getattr(torch, dtype), shape) for dtype, shape in row.tensors.values()] for _ in range(row.layers)]
    return [[torch.ones(row.slots_per_rank, *shape, dtype=dtype) for dtype, shape in layer] for layer in rows]


class Ours:
    """stepwise: one batch of layers a step, with pauses as if a model ran between them; else to the end at once."""

    def __init__(self, row: Row, stepwise: bool) -> None:
        from eplb_plugin import Topology
        from eplb_plugin.engines.device_tables import DispatchTables
        from eplb_plugin.migration.layout import expert_rows
        from eplb_plugin.migration.shuffle import Shuffler

        self.row, self.stepwise = row, stepwise
        layers = [expert_rows(dict(zip(row.tensors, layer, strict=True)), row.slots_per_rank) for layer in weights(row)]
        self.topology = Topology(NODES, RANKS // NODES, row.slots_per_rank)
        start = np.tile(np.arange(self.topology.num_slots, dtype=np.int32) % row.experts, (row.layers, 1))
        self.plan_in_force = self._plan(start)
        self.tables = DispatchTables(self.plan_in_force, [dist.get_rank()], torch.device("cpu"))
        groups = {"data": dist.new_group(), "votes": dist.new_group()}
        self.shuffler = Shuffler(layers, self.topology, switch=self._switch, **groups)

    def _plan(self, phy2log: Any) -> Any:
        """With the weights of `dispatch: weighted`, the default of both engines."""
        from eplb_plugin import Placement
        from eplb_plugin.planning.planner import plan_of

        return plan_of(Placement(phy2log), self.topology, "weighted")

    def _switch(self, layers: list[int], _rows: Any) -> None:
        self.tables.switch(layers, self.plan_in_force)

    def run(self, old: Any, new: Any) -> dict[str, Any]:
        self.plan_in_force = self._plan(new)
        shuffler, began, steps = self.shuffler, time.perf_counter(), []
        shuffler.begin(old, new)
        planned = time.perf_counter()
        if self.stepwise:
            while True:
                at = time.perf_counter()
                going = shuffler.step()
                steps.append(time.perf_counter() - at)
                if not going:
                    break
                time.sleep(self.row.pause)
        else:
            shuffler.finish()
        ended = time.perf_counter()
        steps.append(planned - began if self.stepwise else ended - began)
        return {"total": ended - began, "steps": steps, "staging": shuffler.wires.nbytes, "maps": self.tables.nbytes()}

    def plan(self, old: Any, new: Any) -> float:
        from eplb_plugin.migration.schedule import schedule

        began = time.perf_counter()
        schedule(old, new, self.topology)
        return time.perf_counter() - began


class Vllm:
    """vLLM's functions. asynchronous: its thread's loop and its main thread's step, around its own transfer, buffer
    and commit functions; its state classes need a whole engine. batched: with migration batching.
    """

    def __init__(self, row: Row, asynchronous: bool = False, batched: bool = False) -> None:
        from types import SimpleNamespace

        from vllm.distributed.eplb import eplb_communicator, eplb_state, rebalance_execute

        self.row, self.asynchronous, self.batched = row, asynchronous, batched
        self.execute, self.state_module = rebalance_execute, eplb_state
        eplb_communicator.is_local_first_rank = lambda: False  # asks for an engine's groups, to log
        self.group, self.flags, self.votes = dist.new_group(), dist.new_group(), dist.new_group()
        self.communicator = eplb_communicator.TorchDistNcclEplbCommunicator(self.group)
        self.weights = [[tensor.view(len(tensor), -1) for tensor in layer] for layer in weights(row)]
        self.buffer = [torch.empty_like(tensor) for tensor in self.weights[0]]
        slots = RANKS * row.slots_per_rank
        self.state = SimpleNamespace(
            physical_to_logical_map=torch.zeros(row.layers, slots, dtype=torch.int64),
            logical_to_physical_map=torch.full((row.layers, row.experts, 1024), -1),
            logical_replica_count=torch.zeros(row.layers, row.experts, dtype=torch.int64),
        )

    def run(self, old: Any, new: Any) -> dict[str, Any]:
        before, after = torch.from_numpy(old), torch.from_numpy(new)
        began, steps = time.perf_counter(), []
        if self.asynchronous:
            steps = self._steps(before, after)
        else:
            self.execute.rearrange_expert_weights_inplace(
                before, after, self.weights, self.buffer, self.group, self.communicator
            )
            self.state_module._commit_eplb_maps(self.state, after)
        total = time.perf_counter() - began
        maps = (self.state.logical_to_physical_map, self.state.logical_replica_count)
        return {
            "total": total,
            "steps": steps or [total],
            "staging": sum(tensor.nbytes for tensor in self.buffer),
            "maps": sum(tensor.nbytes for tensor in maps),
        }

    def _steps(self, old: torch.Tensor, new: torch.Tensor) -> list[float]:
        pending: list[Any] = []
        consumed = threading.Event()

        def transfer() -> None:
            batches = [None] * len(old)
            if self.batched:
                schedules = self.execute_batches()
                batches = schedules(self.row.slots_per_rank, old.numpy(), new.numpy())
            for layer in range(len(old)):
                dist.all_reduce(torch.ones(1, dtype=torch.int32), group=self.flags)
                done = self.execute.transfer_layer(
                    old[layer], new[layer], self.weights[layer], self.buffer, self.group, self.communicator,
                    layer_idx=layer, enable_migration_batching=self.batched, migration_batches=batches[layer],
                )  # fmt: skip
                consumed.clear()
                pending.append(done)
                consumed.wait()

        thread, steps, layer = threading.Thread(target=transfer), [], 0
        thread.start()
        while layer < len(old):
            at = time.perf_counter()
            ready = torch.tensor([len(pending)], dtype=torch.int32)
            dist.all_reduce(ready, group=self.votes)
            if int(ready) == RANKS:
                self.execute.move_from_buffer(
                    self.weights[layer], self.buffer, pending.pop(), new[layer].numpy(), dist.get_rank()
                )
                self.state_module._commit_eplb_maps_for_layer(self.state, new[layer], layer)
                consumed.set()
                layer += 1
            steps.append(time.perf_counter() - at)
            time.sleep(self.row.pause)
        thread.join()
        return steps

    @staticmethod
    def execute_batches() -> Any:
        from vllm.distributed.eplb.migration_scheduler import schedule_migration_batches_for_layers

        return schedule_migration_batches_for_layers

    def plan(self, old: Any, new: Any) -> float:
        """With a communicator that does nothing, and one tensor of one byte: its planning and its local copies."""
        if self.batched:
            began = time.perf_counter()
            self.execute_batches()(self.row.slots_per_rank, old, new)
            return time.perf_counter() - began
        tiny = [torch.ones(self.row.slots_per_rank, 1, dtype=torch.int8)]
        began = time.perf_counter()
        for one, other in zip(old, new, strict=True):
            self.execute.move_to_buffer(
                self.row.slots_per_rank, one, other, tiny, tiny, None, dist.get_rank(), Nothing()
            )
        return time.perf_counter() - began


class Nothing:
    def set_transfer_context(self, *_: Any) -> None: ...

    def add_send(self, *_: Any, **__: Any) -> None: ...

    def add_recv(self, *_: Any, **__: Any) -> None: ...

    def execute(self) -> None: ...


class Sglang:
    """SGLang's update of one layer, for all layers in turn, as its updater calls it; its maps are not timed."""

    def __init__(self, row: Row) -> None:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        from sglang.srt.eplb import expert_location_updater

        self.row, self.updater, self.weights = row, expert_location_updater, weights(row)
        self.buffer = expert_location_updater.create_temp_buffers(self.weights[0])

    def run(self, old: Any, new: Any) -> dict[str, Any]:
        began = time.perf_counter()
        self._all(self.weights, self.buffer, old, new)
        total = time.perf_counter() - began
        return {"total": total, "steps": [total], "staging": sum(tensor.nbytes for tensor in self.buffer), "maps": 0}

    def plan(self, old: Any, new: Any) -> float:
        """With messages that are not sent, and one tensor of one byte."""
        tiny = [[torch.ones(self.row.slots_per_rank, 1, dtype=torch.int8)]] * self.row.layers
        send, dist.batch_isend_irecv = dist.batch_isend_irecv, lambda p2p_op_list: []
        try:
            began = time.perf_counter()
            self._all(tiny, [tiny[0][0].clone()], old, new)
            return time.perf_counter() - began
        finally:
            dist.batch_isend_irecv = send

    def _all(self, tensors: Any, buffer: Any, old: Any, new: Any) -> None:
        for layer in range(self.row.layers):
            self.updater.update_expert_weights_single_layer(
                routed_experts_weights=tensors[layer],
                temp_buffers=buffer,
                old_physical_to_logical_map=old[layer].tolist(),
                new_physical_to_logical_map=new[layer].tolist(),
                num_local_physical_experts=self.row.slots_per_rank,
                num_gpu_per_node=RANKS // NODES,
                rank=dist.get_rank(),
                world_size=RANKS,
            )


ARMS: dict[str, dict[str, Any]] = {
    "vllm": {
        "eplb_plugin, at once": lambda row: Ours(row, stepwise=False),
        "eplb_plugin, stepwise": lambda row: Ours(row, stepwise=True),
        "vllm sync": lambda row: Vllm(row),
        "vllm async": lambda row: Vllm(row, asynchronous=True),
        "vllm async, batched": lambda row: Vllm(row, asynchronous=True, batched=True),
    },
    "sglang": {"sglang": lambda row: Sglang(row)},
}
