"""The plugin's shuffler with the tensors, maps and process groups of one SGLang model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.utils import get_bool_env_var

from ...errors import PluginError, mismatch
from ...migration.budget import Budget
from ...migration.layout import ExpertRows
from ...migration.shuffle import Shuffler
from ...topology import Topology
from .experts import expert_layers, refuse_unknown
from .maps import switch_maps

logger = logging.getLogger("eplb_plugin")

CANARY = "SGLANG_EXPERT_LOCATION_UPDATER_CANARY"  # SGLang's check of every slot after every move, made here as well


class Mover:
    """Moves the experts of a loaded model. Made on all ranks at once: it makes process groups.

    layer_ids: decoder-layer numbers of the MoE layers, in the order of its placements. plans: a CPU group for what
    plans in the background. Raises PluginError, naming the tensor, where it is not certain what moving an expert means.
    """

    def __init__(self, model: Any, layer_ids: list[int], topology: Topology, budget: Budget) -> None:
        world = get_world_group()
        self._model, self._layer_ids, self._topology, self._rank = model, layer_ids, topology, world.rank_in_group
        self._canaries = torch.from_numpy(self._own(self.placed()).copy()) if get_bool_env_var(CANARY) else None
        if self._canaries is not None:
            self._canaries = self._canaries.to(get_global_expert_location_metadata().physical_to_logical_map.device)
        layers = self._read()
        refuse_unknown(model, layer_ids, layers)
        backend = dist.get_backend(world.device_group)  # over NCCL rows travel on SGLang's stream, as its updater's do
        data, votes, self.plans = (dist.new_group(world.ranks, backend=one) for one in (backend, "gloo", "gloo"))
        dist.barrier(data)  # NCCL: an exchange between some of the ranks must not be the first use of a group
        self.shuffler = Shuffler(layers, topology, data=data, votes=votes, switch=self._switch, budget=budget)
        self._reloaded = False  # weights were written by SGLang since the tensors were read
        self._expelled = False  # the tensors are no longer what they were at the start

    @property
    def expert_bytes(self) -> int:
        """Of one expert in one layer."""
        return self.shuffler.layers[0].expert_bytes

    def placed(self) -> NDArray[np.int32]:
        """[L, P] copy of the placement in force."""
        rows = get_global_expert_location_metadata().physical_to_logical_map_cpu.numpy()
        return rows[self._layer_ids].astype(np.int32)

    def move(self, planned: Callable[[], NDArray[np.int32]]) -> Iterator[None]:
        """Collective: yields once per forward pass until the experts lie as `planned` says, which runs meanwhile.

        Returns at once, on all ranks, where no move is possible any more; that was logged when it came so.
        """
        if self._reloaded:
            self._read_again()
        if self._expelled or not self.shuffler.wires.intact:
            return
        self.shuffler.begin(self.placed(), planned())
        while self.shuffler.step():
            yield

    def settle(self) -> None:
        """Collective, between two passes: end the move under way, because SGLang is about to write the weights.

        Rows that are staged already would bring back the old weights.
        """
        self.shuffler.finish()
        self._reloaded = True

    def _read(self) -> list[ExpertRows]:
        return expert_layers(self._model, self._layer_ids, self._topology.slots_per_rank, self._canaries)

    def _read_again(self) -> None:
        """SGLang may have made the tensors anew: what moves must be what the model computes with."""
        self._reloaded = False
        try:
            layers = self._read()
            signatures = [[one.signature for one in rows] for rows in (self.shuffler.layers, layers)]
            if signatures[0] != signatures[1]:
                fix = "restart the server to rebalance again"
                raise mismatch("expert tensors", found="others since the weights were loaded anew", expected="the same",
                               fix=fix)  # fmt: skip
            self.shuffler.layers = layers
        except PluginError as error:
            logger.error("no rebalance any more: %s", error)
            self._expelled = True

    def _own(self, phy2log: NDArray[np.int32]) -> NDArray[np.int32]:
        size = self._topology.slots_per_rank
        return phy2log[:, self._rank * size : (self._rank + 1) * size]

    def _switch(self, rows: list[int], phy2log: NDArray[np.int32]) -> None:
        """The weights of these layers are in place: put their maps in force."""
        if self._canaries is not None:
            found, expected = self._canaries[rows].cpu().numpy(), self._own(phy2log)
            if not np.array_equal(found, expected):
                layers = [self._layer_ids[row] for row in rows]
                raise mismatch(f"canaries of layers {layers}", found=found.tolist(), expected=expected.tolist(),
                               fix="report this")  # fmt: skip
        layer_ids = [self._layer_ids[row] for row in rows]
        switch_maps(get_global_expert_location_metadata(), layer_ids, phy2log, self._topology, self._rank)
