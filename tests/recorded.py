"""What a recorder must hold after forward passes, counted token by token; and passes for tests of other things."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.kernels import record
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
    """What the recorder should hold. rows: [L, K] per token, as given; alone: those of which only load counts."""

    layers: int
    experts: int
    top_k: int
    sample_rows: int
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    alone: set[int] = field(default_factory=set)

    def add(self, rows: list[NDArray[np.int64]], paired: bool) -> None:
        self.alone |= set() if paired else set(range(len(self.rows), len(self.rows) + len(rows)))
        self.rows += rows

    def routing(self, ids: NDArray[np.int64]) -> list[int] | None:
        """The experts of a row; None: it names one twice."""
        named = [one for one in ids.tolist() if 0 <= one < self.experts]
        return named if len(set(named)) == len(named) else None

    @property
    def totals(self) -> NDArray[np.int64]:
        totals = np.zeros((self.layers, self.experts + 2), np.int64)
        for row in self.rows:
            for layer, ids in enumerate(row):
                routing = self.routing(ids)
                for one in routing or []:
                    totals[layer, one] += 1
                totals[layer, self.experts] += bool(routing)
                totals[layer, self.experts + 1] += routing is None
        return totals

    @property
    def kept(self) -> list[NDArray[np.int64]]:
        """Tokens of which whole rows are kept: -1 where nothing is counted."""
        paired = [row for token, row in enumerate(self.rows) if token not in self.alone]
        cleared = [
            np.array([[one if one in (self.routing(ids) or []) else -1 for one in ids.tolist()] for ids in row])
            for row in paired
        ]
        return [row for row in cleared if (row >= 0).any()]

    @property
    def coactivation(self) -> NDArray[np.int64]:
        pairs = np.zeros((self.layers, self.experts, self.experts), np.int64)
        for row in self.kept:
            for layer, ids in enumerate(row):
                for one in ids[ids >= 0]:
                    for other in ids[ids >= 0]:
                        pairs[layer, one, other] += 1
        return pairs

    @property
    def sample(self) -> NDArray[np.int64]:
        ring = np.full((self.layers, self.sample_rows, self.top_k), -1)
        for place, row in enumerate(self.kept):
            ring[:, place % self.sample_rows] = row
        return ring

    def agrees_with(self, recorder: Recorder) -> None:
        np.testing.assert_array_equal(recorder.totals.numpy(), self.totals)
        np.testing.assert_array_equal(coactivation(recorder).numpy(), self.coactivation)
        np.testing.assert_array_equal(recorder.sample.numpy(), self.sample)
        tokens = len(self.kept)
        assert recorder.num_tokens.item() == tokens
        count = min(3, self.sample_rows, tokens)
        places = np.arange(tokens - count, tokens) % self.sample_rows
        np.testing.assert_array_equal(recorder.newest(count).numpy(), self.sample[:, places])


def spoiled(random: np.random.Generator, ids: NDArray[np.int64], experts: int) -> NDArray[np.int64]:
    """[..., k] rows of a router, some of them as no router makes them: an expert twice, zeros, and ids of no expert
    (-1, or beyond the last: masked "zero experts", shared ones) anywhere.
    """
    ids = np.where(random.random(ids.shape) < 0.1, random.choice([-1, experts, experts + 3], ids.shape), ids)
    repeats = random.random(ids.shape[:-1]) < 0.15
    place = random.integers(0, ids.shape[-1], (2, *ids.shape[:-1], 1))
    one = np.take_along_axis(ids, place[0], axis=-1)
    again = ids.copy()
    np.put_along_axis(again, place[1], one, axis=-1)
    ids = np.where(repeats[..., None], again, ids)
    ids[random.random(ids.shape[:-1]) < 0.05] = 0
    ids[random.random(ids.shape[:-1]) < 0.1] = -1
    return ids
