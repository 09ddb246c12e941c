"""Expert tensors of every odd kind, whose bytes say which layer, expert and tensor they are of; run in the ranks."""

from __future__ import annotations

import logging
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

import nccl_rules
import simulated_device as sim
from eplb_plugin import Topology
from eplb_plugin.migration.hops import least_rows
from eplb_plugin.migration.layout import ExpertRows, expert_rows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.shuffle import Shuffler
from eplb_plugin.migration.wires.nixl import Nixl

NO_NIXL = pytest.mark.skipif(find_spec("nixl_cu12") is None, reason="needs NIXL: pip install --no-deps nixl-cu12")
WIRES = ["gloo", pytest.param("nixl", marks=NO_NIXL)]
# with layers on the simulated accelerator: gloo through host memory, and NCCL's place taken under NCCL's rules
ON_A_DEVICE = ["sim over gloo", "sim over nccl"]

# name -> dtype, shape of one expert
KINDS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "w13_weight": (torch.float32, (6, 8)),
    "w2_weight": (torch.bfloat16, (8, 3)),
    "w13_weight_scale_inv": (torch.float8_e4m3fn, (3, 5)),
    "w2_qzeros": (torch.int8, (3,)),
    "w13_qweight": (torch.int32, (2, 5)),
    "w2_bias": (torch.float64, (5,)),
    "w2_alpha": (torch.float16, ()),
    "w2_mask": (torch.bool, (7,)),
}
LONG = {"w2_long": (torch.int16, (4099, 5))}  # more words than a block of the seal


class Model:
    """The MoE layers of one rank. phy2log: [L, P] what its tensors hold and its maps say."""

    def __init__(
        self, phy2log: NDArray[Any], slots: int, long_rows: bool = False, device: torch.device | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        self.rank, self.slots, self.phy2log = dist.get_rank(), slots, np.array(phy2log, np.int32)
        self.kinds = KINDS | LONG if long_rows else KINDS
        self.tensors = [self._layer(layer) for layer in range(len(phy2log))]
        self.addresses = self._addresses()
        self.switched: list[list[int]] = []

    def _layer(self, layer: int) -> dict[str, torch.Tensor]:
        def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(self.slots, *shape, dtype=dtype, device=self.device)

        tensors = {name: empty(dtype, *shape) for name, (dtype, shape) in self.kinds.items()}
        tensors["w13_weight_scale_inv"] = empty(torch.float8_e4m3fn, 5, 3).transpose(1, 2)
        tensors["w2_bias"] = empty(torch.float64, 8).zero_()[:, :5]  # rows with room between them
        for slot, expert in enumerate(self._own(self.phy2log[layer])):
            for name in self.kinds:
                self._bytes(tensors[name], slot)[:] = self._expected(layer, expert, name)
        scale = torch.tensor([float(self.rank)]).to(self.device)
        tensors["w13_input_scale"] = scale.expand(self.slots)  # this rank's, stays
        tensors["w13_again"] = tensors["w13_weight"]
        tensors["group_size"] = torch.tensor(128)
        return {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}

    def _own(self, row: NDArray[Any]) -> NDArray[Any]:
        return row[self.rank * self.slots : (self.rank + 1) * self.slots]

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its memory, without a word to the device."""
        return tensor.detach() if self.device.type == "cpu" else sim.host_view(tensor.detach())

    def _bytes(self, tensor: torch.Tensor, slot: int) -> NDArray[np.uint8]:
        row = self._seen(tensor)[slot]
        inner = row if row.dim() < 2 or row.is_contiguous() else row.transpose(0, 1)
        return inner.reshape(1, -1)[0].view(torch.uint8).numpy()

    def _expected(self, layer: int, expert: int, name: str) -> NDArray[np.uint8]:
        dtype, shape = self.kinds[name]
        seed = [layer, int(expert), list(self.kinds).index(name)]
        size = int(np.prod(shape)) * dtype.itemsize
        return np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, size, dtype=np.uint8)

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for layer in self.tensors for tensor in layer.values()]

    def shuffler(self, topology: Topology, data: Any, votes: Any, budget: Budget | None = None) -> Shuffler:
        switch = lambda *args: self.switch(*args)  # noqa: E731  # looked up when it is called: tests replace it
        return Shuffler(self.rows(), topology, data=data, votes=votes, switch=switch, budget=budget)

    def rows(self) -> list[ExpertRows]:
        shared = ("w13_input_scale",) if self.slots == 1 else ()  # else its stride tells
        return [expert_rows(layer, self.slots, shared) for layer in self.tensors]

    def least_staging(self) -> int:
        """Bytes with which this model can only just be moved, over any wires."""
        return max(rows.row_bytes for rows in self.rows()) * (2 * least_rows(self.slots) + 2)

    def switch(self, layers: list[int], rows: NDArray[np.int32]) -> None:
        self.switched.append(layers)
        self.phy2log[layers] = rows

    def check(self) -> None:
        """Every tensor, bit for bit, is what the maps of this rank say, at the address where it was."""
        assert self._addresses() == self.addresses
        for layer, tensors in enumerate(self.tensors):
            assert self._seen(tensors["w13_input_scale"]).tolist() == [float(self.rank)] * self.slots
            for slot, expert in enumerate(self._own(self.phy2log[layer])):
                for name in self.kinds:
                    found, expected = self._bytes(tensors[name], slot), self._expected(layer, expert, name)
                    assert np.array_equal(found, expected), f"layer {layer}, slot {slot}, expert {expert}, {name}"


_groups: dict[str, Any] = {}
_BACKENDS = {"sim over gloo": "gloo", "sim over nccl": "nccl_rules"}


def groups(wires: str = "gloo", fresh: bool = False) -> tuple[Any, Any]:
    """Collective: what a Shuffler moves rows on and votes on; of an earlier test of these processes unless `fresh`."""
    on_device = wires in _BACKENDS
    data, votes = (_BACKENDS[wires], "gloo_rules") if on_device else ("gloo", "gloo")
    if fresh:
        _groups.clear()
    for use in (f"rows over {data}", f"votes over {votes}"):
        if use not in _groups:
            _groups[use] = dist.new_group(backend=use.split()[-1], timeout=timedelta(seconds=300))
    rows = _groups[f"rows over {data}"]
    return nixl(rows) if wires == "nixl" else rows, _groups[f"votes over {votes}"]


def device_of(wires: str) -> torch.device | None:
    """Where the layers are, to be called before `groups`; in processes of their own if it is no CPU."""
    return nccl_rules.install() if wires in _BACKENDS else None


def nixl(group: Any) -> Nixl:
    """What an engine would lend."""
    from nixl_cu12._api import nixl_agent

    return Nixl(nixl_agent, group)


class Log(logging.Handler):
    """The lines of the plugin's log while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Log:
        logger = logging.getLogger("eplb_plugin")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("eplb_plugin").removeHandler(self)
