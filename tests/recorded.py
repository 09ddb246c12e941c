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
    slots = torch.zeros(1, dtype=torch.int32) if slot_load is None else slot_load
    return Counters(
        *recorder.passing(layer, ubatch), slots, torch.tensor(enabled), torch.tensor(slot_load is not None),
        torch.as_tensor(real, dtype=torch.int32), chunk,
    )  # fmt: skip


def route_layer(
    recorder: Recorder, layer: int, ids: ArrayLike, real: int = UNBOUNDED, chunk: int = 0, ubatch: int = 0
) -> None:
    """A layer routes ids: [T, k] in the pass that is under way."""
    record(torch.as_tensor(np.asarray(ids)), counters(recorder, layer, real, chunk, ubatch))


@dataclass
class Reference:
    """What the recorder should hold. rows: [L, K] per token, -1 = no expert."""

    layers: int
    experts: int
    top_k: int
    sample_rows: int
    rows: list[NDArray[np.int64]] = field(default_factory=list)

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
        for row in self.rows:
            for layer, ids in enumerate(row):
                for one in ids[ids >= 0]:
                    for other in ids[ids >= 0]:
                        pairs[layer, one, other] += 1
        return pairs

    @property
    def sample(self) -> NDArray[np.int64]:
        ring = np.full((self.layers, self.sample_rows, self.top_k), -1)
        for place, row in enumerate(self.rows):
            ring[:, place % self.sample_rows] = row
        return ring

    def agrees_with(self, recorder: Recorder) -> None:
        np.testing.assert_array_equal(recorder.load.numpy(), self.load)
        np.testing.assert_array_equal(recorder.coactivation.numpy(), self.coactivation)
        np.testing.assert_array_equal(recorder.sample.numpy(), self.sample)
        assert recorder.num_tokens.item() == len(self.rows)
        newest = self.rows[-min(3, self.sample_rows) :]
        kept = recorder.newest(min(3, self.sample_rows)).numpy()
        for place, row in enumerate(reversed(newest)):
            np.testing.assert_array_equal(kept[:, -1 - place], row)
