"""What an SGLang model routes in a forward pass, on its way into the plugin's recorder.

Where the plugin's tables map a layer's ids (`weighted`, `cover`), the launch that does so counts them, and the slots
for SGLang's recorder: here it gets the buffers for that. Where SGLang maps, they are counted from the slots that SGLang
hands its recorder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.eplb.expert_distribution import _SelectExpertsSinglePassGatherer
from sglang.srt.model_executor.forward_context import get_forward_context, has_forward_context

from ...dispatch.buffers import Counters, LayerTables
from ...dispatch.torch_ops import record
from ...recording.recorder import Recorder


@dataclass
class Mapped:
    """Of a layer and micro-batch. tables: rows [E, entries] under `weighted`; counters: for the next ids; evened: the
    key of what maps them under `exact`; info: what SGLang's router is handed, once it was made.
    """

    tables: torch.Tensor | LayerTables
    counters: Counters
    evened: torch.Tensor | None = None
    info: Any = None


class PassRecording:
    """Feeds the recorder of a model. layer_ids: decoder-layer number of each of its rows.

    mapped: whoever maps a layer's ids counts them by `counters`, and `stage` does nothing.
    """

    def __init__(self, recorder: Recorder, layer_ids: Sequence[int], mapped: bool) -> None:
        self.recorder, self._mapped = recorder, mapped
        self._layer_ids = list(layer_ids)
        self._row_of = {layer: row for row, layer in enumerate(layer_ids)}
        self._kept: dict[tuple[int, int, bool], Counters] = {}  # by row, micro-batch, and whether SGLang disables
        self._calls: dict[int, int] = {}  # per row, in this pass: micro-batches route one after the other
        self._stale = False  # rows were staged outside a pass, by a warm-up or while a graph was captured
        device = recorder.num_tokens.device
        self._no, self._yes = torch.tensor(False, device=device), torch.tensor(True, device=device)
        self._uncounted = torch.zeros(1, dtype=torch.int32, device=device)  # where SGLang counts slots by itself

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

    def stage(self, engine_recorder: Any, topk_ids: torch.Tensor) -> bool:
        """Inside the forward pass, also while a graph is captured. topk_ids: [T, K] physical ids, -1 = padding.

        Returns whether SGLang still has to count them: its several launches a layer are spared where ours did.
        """
        layer = engine_recorder._current_layer_idx.value
        if layer is None:  # the model's code does not say: counted where its ids were mapped, SGLang's slots as well
            return False
        row = self._row_of.get(layer)
        if row is None or engine_recorder._disable_all:
            return True
        if self._mapped:
            return _slot_load(engine_recorder, layer) is None
        phy2log = engine_recorder._expert_location_metadata.physical_to_logical_map[layer]
        record(topk_ids, self.counters(row, engine_recorder), phy2log)
        return True

    def counters(self, row: int, engine_recorder: Any) -> Counters:
        """Inside the forward pass, also while a graph is captured: where the next ids of this layer are counted."""
        disabled, real = engine_recorder._disable_all, real_rows()
        key = row, 0 if disabled else self._next_ubatch(row, engine_recorder), disabled
        if key not in self._kept:
            self._kept[key] = self._counters(*key, engine_recorder)
        kept = self._kept[key]
        return kept if real is None else kept._replace(real=real)

    def _counters(self, row: int, ubatch: int, disabled: bool, engine_recorder: Any) -> Counters:
        recorder = self.recorder
        slots = _slot_load(engine_recorder, self._layer_ids[row]) if self._mapped and not disabled else None
        return Counters(
            *recorder.passing(row, ubatch),
            slot_load=self._uncounted if slots is None else slots,
            enabled=self._no if disabled else recorder.counting,
            pairs_enabled=self._no if disabled else recorder.counting_pairs,
            slots_enabled=self._no if slots is None else self._yes,
            real=recorder.unbounded,
            chunk=0,
        )

    def _next_ubatch(self, row: int, engine_recorder: Any) -> int:
        self._stale = self._stale or engine_recorder._current_forward_pass_id.value is None
        calls = self._calls.get(row, 0)
        self._calls[row] = calls + 1
        return calls % len(self.recorder.stage)


def _slot_load(engine_recorder: Any, layer: int) -> torch.Tensor | None:
    """[P] int32 where SGLang's recorder counts a layer's slots in a pass; None if it counts something else."""
    (gatherer,) = engine_recorder._single_pass_gatherers.values()
    return gatherer._data[layer] if isinstance(gatherer, _SelectExpertsSinglePassGatherer) else None


def real_rows() -> torch.Tensor | None:
    """Scalar tensor of how many rows of the layer's input are real, in a graph its static buffer; None: all."""
    bound = get_forward_context().moe_num_token_non_padded if has_forward_context() else None
    return bound() if bound is not None else None
