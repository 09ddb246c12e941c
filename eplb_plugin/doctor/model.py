"""MoE layers whose bytes say which expert they are of, and a graph that reads them, as a forward pass would."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..migration.layout import ExpertRows, expert_rows
from .checks import expect_equal
from .site import Site

# tensor -> dtype, elements of one expert on a GPU (a fourteenth of DeepSeek-V3's) and in a test
KINDS: dict[str, tuple[torch.dtype, tuple[int, int], tuple[int, int]]] = {
    "w13": (torch.float8_e4m3fn, (1024, 1280), (6, 8)),
    "w2": (torch.bfloat16, (1024, 896), (5, 3)),
    "scale": (torch.float32, (8, 10), (3, 5)),
}


class Model:
    """The layers of one rank. phy2log: [L, P] what its tensors hold and its maps say."""

    def __init__(self, site: Site, phy2log: NDArray[np.int32], own: slice) -> None:
        self.site, self.phy2log, self.own = site, phy2log.copy(), own
        self.tensors = [self._layer(layer) for layer in range(len(phy2log))]
        self.rows: list[ExpertRows] = [expert_rows(tensors, own.stop - own.start) for tensors in self.tensors]
        self._sums = torch.zeros(len(phy2log), own.stop - own.start, dtype=torch.int64, device=site.device)
        self._forward = site.capture(self._read)

    def switch(self, layers: Sequence[int], rows: NDArray[np.int32]) -> None:
        self.phy2log[list(layers)] = rows

    def check(self, what: str) -> None:
        """What a replayed forward pass reads, and every byte, is what the maps say. Raises PluginError."""
        self._forward()
        experts = self.phy2log[:, self.own]
        expected = [[self._sum(layer, int(expert)) for expert in row] for layer, row in enumerate(experts)]
        expect_equal(f"{what}: weights read by the forward pass", self._sums, torch.tensor(expected))
        for layer, tensors in enumerate(self.tensors):
            for number, (name, tensor) in enumerate(tensors.items()):
                made = [pattern(layer, int(one), number, self._size(name)) for one in experts[layer]]
                expect_equal(f"{what}: bytes of {name} in layer {layer}", _matrix(tensor), torch.stack(made))

    def _layer(self, layer: int) -> dict[str, torch.Tensor]:
        made = {}
        for number, (name, (dtype, *_)) in enumerate(KINDS.items()):
            rows = [pattern(layer, int(one), number, self._size(name)) for one in self.phy2log[layer, self.own]]
            shape = self._shape(name)
            tensor = torch.stack(rows).view(dtype).view(len(rows), *shape).to(self.site.device)
            made[name] = tensor.transpose(1, 2) if name == "scale" else tensor
        return made

    def _shape(self, name: str) -> tuple[int, int]:
        return KINDS[name][1] if self.site.full else KINDS[name][2]

    def _size(self, name: str) -> int:
        rows, columns = self._shape(name)
        return rows * columns * KINDS[name][0].itemsize

    def _sum(self, layer: int, expert: int) -> int:
        return sum(_pattern_sum(layer, expert, number, self._size(name)) for number, name in enumerate(KINDS))

    def _read(self) -> None:
        for layer, tensors in enumerate(self.tensors):
            parts = [_matrix(tensor).sum(1, dtype=torch.int64) for tensor in tensors.values()]
            self._sums[layer].copy_(parts[0] + parts[1] + parts[2])


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """[slots, bytes] in the order of memory."""
    inner = tensor if tensor.is_contiguous() else tensor.transpose(1, 2)
    return inner.view(torch.uint8).flatten(1)


@lru_cache(maxsize=4096)
def pattern(layer: int, expert: int, number: int, size: int) -> torch.Tensor:
    """[size] uint8, of no other (layer, expert, tensor)."""
    step = 2 * (expert + 613 * layer + 7919 * number) + 1
    return (torch.arange(1, size + 1) * (step * 40503) >> 9).to(torch.uint8)


@lru_cache(maxsize=4096)
def _pattern_sum(layer: int, expert: int, number: int, size: int) -> int:
    return int(pattern(layer, expert, number, size).sum(dtype=torch.int64))
