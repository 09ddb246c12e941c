"""The plugin's tables in place of vLLM's replica maps: the same lookup by hash, with rows that the plan's rule makes.

vLLM keeps 1,024 int64 entries per expert and layer; these are int32 and as wide as they can come to be. They are put
in place when the model is registered, before graphs are captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...dispatch.kernels import upload
from ...errors import mismatch
from ...plan_types import Plan
from ..device_tables import DispatchTables
from .compat import load_buffer


class Tables(DispatchTables):
    """With vLLM's own map of what lies where."""

    def __init__(self, plan: Plan, owners: Sequence[int], model_state: Any, tolerance: float | None = None) -> None:
        super().__init__(plan, owners, model_state.logical_to_physical_map.device, tolerance)
        self._state = model_state
        self._put_in_place()

    @torch.inference_mode()
    def switch(self, layers: Sequence[int], plan: Plan) -> None:
        super().switch(layers, plan)
        phy2log = torch.from_numpy(plan.placement.phy2log[layers]).long()
        upload(phy2log, self._state.physical_to_logical_map, layers)

    def _put_in_place(self) -> None:
        """Into the state that vLLM keeps, and into every layer that looks experts up."""
        state = self._state
        state.logical_to_physical_map, state.logical_replica_count = self.rows, self.counts
        for index, layer in enumerate(state.model.moe_layers):
            layer.set_eplb_state(index, load_buffer(state), self.rows, self.counts)
            held = layer.eplb_state
            if held.logical_to_physical_map.data_ptr() != self.rows[index].data_ptr():
                found, fix = "a copy of the replica map", "use vLLM's own EPLB: remove the plugin's settings"
                raise mismatch(f"MoE layer {index}", found=found, expected="a view of it", fix=fix)
