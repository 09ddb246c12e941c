"""The plugin's tables in place of vLLM's replica maps: the same lookup by hash, with rows that the plan's rule makes.

vLLM keeps 1,024 int64 entries per expert and layer; these are int32 and as wide as they can come to be. They are put
in place when the model is registered, before graphs are captured, and only ever filled again: addresses stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...dispatch.cover import cover_maps
from ...dispatch.kernels import CoverTables
from ...dispatch.tables import TABLE_WIDTH, hashed_maps
from ...errors import mismatch
from ...plan_types import Plan


class Tables:
    """Of one model. owners: the ranks that route the same tokens as this one. cover: the tables of that rule."""

    def __init__(self, plan: Plan, owners: Sequence[int], model_state: Any) -> None:
        self.owners, self._state = owners, model_state
        layers, experts = plan.placement.num_layers, plan.placement.num_experts
        self.width = TABLE_WIDTH if plan.dispatch == "weighted" else plan.placement.num_slots - experts + 1
        device = model_state.logical_to_physical_map.device
        self.rows = torch.full((layers, experts, self.width), -1, dtype=torch.int32, device=device)
        self.counts = torch.ones((layers, experts), dtype=torch.int64, device=device)
        self.cover = CoverTables(plan, owners, device) if plan.dispatch == "cover" else None
        self._put_in_place()
        self.switch(range(layers), plan)

    def nbytes(self) -> int:
        return int(self.rows.nbytes + self.counts.nbytes) + (self.cover.nbytes() if self.cover else 0)

    @torch.inference_mode()
    def switch(self, layers: Sequence[int], plan: Plan) -> None:
        """The experts of these layers lie as in `plan`; from now on tokens are sent there by it."""
        rows, counts = hashed_maps(plan, self.owners, list(layers))
        phy2log = torch.from_numpy(plan.placement.phy2log[layers]).long()
        _upload(phy2log, self._state.physical_to_logical_map, layers)
        _upload(torch.from_numpy(rows), self.rows[:, :, : rows.shape[2]], layers)
        _upload(torch.from_numpy(counts), self.counts, layers)
        if self.cover is not None:
            self.cover.put(cover_maps(plan, layers), layers)

    def _put_in_place(self) -> None:
        """Into the state that vLLM keeps, and into every layer that looks experts up."""
        state = self._state
        state.logical_to_physical_map, state.logical_replica_count = self.rows, self.counts
        for index, layer in enumerate(state.model.moe_layers):
            layer.set_eplb_state(index, state.expert_load_pass_buffer, self.rows, self.counts)
            held = layer.eplb_state
            if held.logical_to_physical_map.data_ptr() != self.rows[index].data_ptr():
                found, fix = "a copy of the replica map", "use vLLM's own EPLB: remove the plugin's settings"
                raise mismatch(f"MoE layer {index}", found=found, expected="a view of it", fix=fix)


def _upload(source: torch.Tensor, target: torch.Tensor, layers: Sequence[int]) -> None:
    """Rows of `source` into these layers of `target`, without waiting for a device."""
    index, rows = torch.tensor(layers), source
    if target.is_cuda:
        index, rows = (part.pin_memory().to(target.device, non_blocking=True) for part in (index, rows))
    target.index_copy_(0, index, rows)
