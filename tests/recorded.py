"""What a recorder must hold after forward passes, counted token by token; and passes for tests of other things."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from eplb_plugin.dispatch.kernels import Counters, record
from eplb_plugin.recording.recorder import Recorder

UNBOUNDED = 2**31 - 1  # real tokens where nobody says how many


def counters(
    recorder: Recorder, layer: int, real: torch.Tensor | int = UNBOUNDED, chunk: int = 0, ubatch: int = 0,
    slot_load: torch.Tensor | None = None, enabled: bool = True,
) -> Counters:  # fmt: skip
    """Of one layer in a pass with this many real tokens; slots are counted if slot_load is given."""
    device = recorder.num_tokens.device
    slots = torch.zeros(1, dtype=torch.int32, device=device) if slot_load is None else slot_load
    switches = (recorder.counting, recorder.counting_pairs) if enabled else (torch.tensor(False).to(device),) * 2
    return Counters(
        *recorder.passing(layer, ubatch), slots, *switches, torch.tensor(slot_load is not None).to(device),
        torch.as_tensor(real, dtype=torch.int32).to(device), chunk,
    )  # fmt: skip


def coactivation(recorder: Recorder) -> torch.Tensor:
    """[L, E, E] int32, from the pairs, which are kept once."""
    once = recorder.pairs[:, :-1, :-1]
    return once + once.triu(1).transpose(1, 2)


def route_layer(
    recorder: Recorder, layer: int, ids: ArrayLike, real: int = UNBOUNDED, chunk: int = 0, ubatch: int = 0
) -> None:
    """A layer routes ids: [T, k] in the pass that is under way."""
    ids = torch.as_tensor(np.asarray(ids)).to(recorder.num_tokens.device)
    record(ids, counters(recorder, layer, real, chunk, ubatch))


@dataclass
class Reference:
    """What the recorder should hold. rows: [L, K] per token, -1 = no expert; alone: those of which only load counts."""

    layers: int
    experts: int
    top_k: int
    sample_rows: int
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    alone: set[int] = field(default_factory=set)

    def add(self, rows: list[NDArray[np.int64]], paired: bool) -> None:
        self.alone |= set() if paired else set(range(len(self.rows), len(self.rows) + len(rows)))
        self.rows += rows

    @property
    def load(self) -> NDArray[np.int64]:
        load = np.zeros((self.layers, self.experts), np.int64)
        for row in self.rows:
            for layer, ids in enumerate(row):
                for one in ids[ids >= 0]:
                    load[layer, one] += 1
        return load

    @property
    def coactivation(self) -> NDArray[np.int64]:
        pairs = np.zeros((self.layers, self.experts, self.experts), np.int64)
        for token, row in enumerate(self.rows):
            for layer, ids in enumerate(row if token not in self.alone else []):
                for one in ids[ids >= 0]:
                    for other in ids[ids >= 0]:
                        pairs[layer, one, other] += 1
        return pairs

    @property
    def sample(self) -> NDArray[np.int64]:
        ring = np.full((self.layers, self.sample_rows, self.top_k), -1)
        for place, row in enumerate(self.rows):
            if place not in self.alone:
                ring[:, place % self.sample_rows] = row
        return ring

    def agrees_with(self, recorder: Recorder) -> None:
        np.testing.assert_array_equal(recorder.load.numpy(), self.load)
        np.testing.assert_array_equal(coactivation(recorder).numpy(), self.coactivation)
        np.testing.assert_array_equal(recorder.sample.numpy(), self.sample)
        assert recorder.num_tokens.item() == len(self.rows)
        count = min(3, self.sample_rows, len(self.rows))
        places = np.arange(len(self.rows) - count, len(self.rows)) % self.sample_rows
        np.testing.assert_array_equal(recorder.newest(count).numpy(), self.sample[:, places])
