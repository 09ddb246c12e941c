"""The plugin's tables in place of vLLM's replica maps: the same lookup by hash, with rows that the plan's rule makes.

vLLM keeps 1,024 int64 entries per expert and layer; these are int32 and as wide as they can come to be. They are put
in place when the model is registered, before graphs are captured, and only ever filled again: addresses stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...dispatch.cover import cover_maps
from ...dispatch.kernels import CoverTables
from ...dispatch.tables import TABLE_WIDTH, hashed_maps
from ...errors import mismatch
from ...plan_types import Plan
from ...planning.job import plan_of


class Tables:
    """Of one model, held by its EplbModelState.

    owners: the ranks that route the same tokens as this one. plan: the one whose rows are committed next; a row that is
    not its placement's, left behind by a cycle that was broken off, is used evenly. cover: the tables of that rule.
    """

    def __init__(self, plan: Plan, owners: Sequence[int], model_state: Any) -> None:
        self.plan, self.owners, self._state = plan, owners, model_state
        layers, experts = plan.placement.num_layers, plan.placement.num_experts
        self.width = TABLE_WIDTH if plan.dispatch == "weighted" else plan.placement.num_slots - experts + 1
        device = model_state.logical_to_physical_map.device
        self.rows = torch.full((layers, experts, self.width), -1, dtype=torch.int32, device=device)
        self.counts = torch.ones((layers, experts), dtype=torch.int64, device=device)
        self.cover = CoverTables(plan, owners, device) if plan.dispatch == "cover" else None
        self._put_in_place()
        self.commit(model_state.physical_to_logical_map.cpu(), range(layers))

    def nbytes(self) -> int:
        return int(self.rows.nbytes + self.counts.nbytes) + (self.cover.nbytes() if self.cover else 0)

    def commit(self, phy2log: torch.Tensor, layers: Sequence[int]) -> None:
        """phy2log: [layers, P] on the host; from now on these layers' experts lie so, and tokens are sent so."""
        plan = self._used(phy2log.numpy().astype(np.int32), list(layers))
        rows, counts = hashed_maps(plan, self.owners, list(layers))
        if self.cover is not None:
            self.cover.put(cover_maps(plan, layers), layers)
        first, last = layers[0], layers[-1] + 1
        _upload(phy2log, self._state.physical_to_logical_map[first:last])
        _upload(torch.from_numpy(rows), self.rows[first:last, :, : rows.shape[2]])
        _upload(torch.from_numpy(counts), self.counts[first:last])

    def _used(self, phy2log: NDArray[np.int32], layers: list[int]) -> Plan:
        plan, placement = self.plan, self.plan.placement
        if np.array_equal(placement.phy2log[layers], phy2log):
            return plan
        known = placement.phy2log.copy()
        known[layers] = phy2log
        return plan_of(replace(placement, phy2log=known), plan.topology, plan.dispatch)

    def _put_in_place(self) -> None:
        """Into the state that vLLM commits to, and into every layer that looks experts up."""
        state = self._state
        state.logical_to_physical_map, state.logical_replica_count = self.rows, self.counts
        for index, layer in enumerate(state.model.moe_layers):
            layer.set_eplb_state(index, state.expert_load_pass_buffer, self.rows, self.counts)
            held = layer.eplb_state
            if held.logical_to_physical_map.data_ptr() != self.rows[index].data_ptr():
                found, fix = "a copy of the replica map", "use vLLM's own EPLB: remove the plugin's settings"
                raise mismatch(f"MoE layer {index}", found=found, expected="a view of it", fix=fix)


def _upload(source: torch.Tensor, target: torch.Tensor) -> None:
    """Without waiting for the device, where the host's memory can be pinned."""
    pin = target.is_cuda
    target.copy_(source.pin_memory() if pin else source, non_blocking=pin)
