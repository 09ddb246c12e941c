"""What an SGLang model routes in a forward pass, on its way into the plugin's recorder.

Where ids are looked up (`weighted`, or by SGLang itself), they are staged from what SGLang hands its own recorder.
Under `cover`, the launch that maps a layer's ids counts them: here it gets the buffers for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.model_executor.forward_context import get_forward_context, has_forward_context

from ...dispatch.kernels import Counters
from ...recording.recorder import Recorder


class PassRecording:
    """Feeds the recorder of a model. layer_ids: decoder-layer number of each of its rows; num_slots: of a layer.

    by_kernel: whoever maps a layer's ids counts them by `counters`, and `stage` does nothing.
    """

    def __init__(self, recorder: Recorder, layer_ids: Sequence[int], num_slots: int, by_kernel: bool) -> None:
        self.recorder, self._by_kernel = recorder, by_kernel
        self._row_of = {layer: row for row, layer in enumerate(layer_ids)}
        self._calls: dict[int, int] = {}  # per row, in this pass: micro-batches route one after the other
        self._stale = False  # rows were staged outside a pass, by a warm-up or while a graph was captured
        device = recorder.num_tokens.device
        self._yes, self._no = (torch.tensor(one, device=device) for one in (True, False))
        self._all = torch.tensor(2**31 - 1, dtype=torch.int32, device=device)
        self._slot_load = torch.zeros(num_slots, dtype=torch.int32, device=device)  # SGLang counts slots by itself

    def row_of(self, layer_id: int) -> int | None:
        """Row of a decoder layer; None if it is not recorded."""
        return self._row_of.get(layer_id)

    def begin(self, tokens: int) -> None:
        """The coming forward pass, of the target or a draft, has this many real tokens at most."""
        if self._stale:
            self.recorder.drop()
            self._stale = False
        self._calls.clear()
        self.recorder.expect([tokens] * len(self.recorder.stage))

    def stage(self, engine_recorder: Any, topk_ids: torch.Tensor) -> None:
        """Inside the forward pass, also while a graph is captured: keep [T, K] physical ids, -1 = padding."""
        layer = engine_recorder._current_layer_idx.value
        row = self._row_of.get(layer)
        if row is None or self._by_kernel or engine_recorder._disable_all:
            return
        phy2log = engine_recorder._expert_location_metadata.physical_to_logical_map[layer]
        ubatch = self._next_ubatch(row, engine_recorder)
        self.recorder.stage_rows(row, logical_ids(topk_ids, phy2log), real_rows(), ubatch=ubatch)

    def counters(self, row: int, engine_recorder: Any) -> Counters:
        """Inside the forward pass, also while a graph is captured: where the next ids of this layer are counted."""
        disabled = engine_recorder._disable_all
        ubatch = 0 if disabled else self._next_ubatch(row, engine_recorder)
        real = real_rows()
        return Counters(
            *self.recorder.passing(row, ubatch),
            slot_load=self._slot_load,
            enabled=self._no if disabled else self._yes,
            real=self._all if real is None else real,
            chunk=0,
        )

    def _next_ubatch(self, row: int, engine_recorder: Any) -> int:
        self._stale = self._stale or engine_recorder._current_forward_pass_id.value is None
        calls = self._calls.get(row, 0)
        self._calls[row] = calls + 1
        return calls % len(self.recorder.stage)


def logical_ids(topk_ids: torch.Tensor, phy2log: torch.Tensor) -> torch.Tensor:
    """[T, K] logical ids of physical ones; what names no routed slot (padding, shared experts) is -1."""
    routed = (topk_ids >= 0) & (topk_ids < phy2log.shape[0])
    return torch.where(routed, phy2log[topk_ids.masked_fill(~routed, 0).long()], -1)


def real_rows() -> torch.Tensor | None:
    """Scalar tensor of how many rows of the layer's input are real, in a graph its static buffer; None: all."""
    bound = get_forward_context().moe_num_token_non_padded if has_forward_context() else None
    return bound() if bound is not None else None
