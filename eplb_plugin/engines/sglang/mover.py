"""The engine-free cycle of a rebalance with the tensors, maps and process groups of one SGLang model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.utils import get_bool_env_var

from ...errors import PluginError, mismatch
from ...migration.layout import ExpertRows
from ...migration.unmoved import Unmoved, refuse_unequal_values
from ...placement import Placement
from ...plan_types import Plan
from ...runtime.cycle import Cycle
from ...runtime.model_entry import ModelEntry
from ...runtime.rebalancer import Rebalancer
from ..device_tables import DispatchTables
from .expert_tensors import expert_layers, left_behind, refuse_unlisted
from .maps import switch_maps

logger = logging.getLogger("eplb_plugin")

KEY = "target"  # SGLang rebalances one model per process: its drafts have no EPLB
CANARY = "SGLANG_EXPERT_LOCATION_UPDATER_CANARY"  # SGLang's check of every slot after every move, made here as well


class Mover:
    """Rebalances a loaded model, the entry KEY of `rebalancer`. Made on all ranks at once: it makes process groups.

    tables: switched with the maps; None where SGLang chooses copies by itself. data: the group that rows travel on, on
    the experts' device; all ranks have met there, which is not so of any other that SGLang's own code leaves idle.
    plans: a CPU group; new weights may travel on it as well, see ResplitLoop.
    Raises PluginError, naming the tensor, where it is not certain what moving an expert means.
    """

    def __init__(
        self, model: Any, entry: ModelEntry, rebalancer: Rebalancer, tables: DispatchTables | None = None
    ) -> None:
        world, metadata = get_world_group(), get_global_expert_location_metadata()
        self._model, self._layer_ids, self._topology = model, entry.layer_ids, entry.topology
        self._tables = tables
        self._rank = world.rank_in_group
        placed = metadata.physical_to_logical_map_cpu.numpy()[self._layer_ids].astype(np.int32)
        # SGLang's, under an all-to-all, name a near copy alone where there is one, and know no declared nodes
        switch_maps(metadata, self._layer_ids, placed, self._topology, self._rank)
        canaries = torch.from_numpy(self._own(placed).copy()).to(metadata.physical_to_logical_map.device)
        self._canaries = canaries if get_bool_env_var(CANARY) else None
        layers = self._read(first=True)
        entry.expert_bytes = layers[0].expert_bytes
        backend = dist.get_backend(world.device_group)  # over NCCL rows travel on SGLang's stream, as its updater's do
        self.data, votes, self.plans = (dist.new_group(world.ranks, backend=one) for one in (backend, "gloo", "gloo"))
        self._cycle = Cycle(rebalancer, self.plans)
        in_force = entry.in_force(Placement(placed, np.array(self._layer_ids, np.int32)))
        self._cycle.add(KEY, layers, in_force, data=self.data, votes=votes, switch=self._switch)
        self._reloaded = False  # SGLang has written weights since the tensors were read
        self._stopped = False

    def move(self) -> Iterator[None]:
        """Collective: plans in the background and moves experts, and yields once per forward pass until that is over.

        Returns at once, on all ranks, where no move is possible any more; that was logged when it came so.
        """
        if self._reloaded:
            self._read_again()
        if not self._stopped:
            self._cycle.begin({})
            while self._cycle.step():
                yield

    @property
    def settled(self) -> bool:
        """Whether nothing moves, and all experts lie as planned."""
        return self._cycle.settled(KEY)

    def settle(self) -> None:
        """Collective, between two passes: end the move under way, because SGLang is about to write the weights.

        Rows that are staged already would bring back the old ones.
        """
        self._cycle.finish()
        self._reloaded = True

    def _read(self, first: bool = False) -> list[ExpertRows]:
        """Collective: no rank goes on with tensors that another refuses. first: as the model was loaded."""
        layers: list[ExpertRows] = []

        def find() -> dict[str, Unmoved]:
            slots = self._topology.slots_per_rank
            layers.extend(expert_layers(self._model, self._layer_ids, slots, self._canaries))
            if first:
                refuse_unlisted(self._model, self._layer_ids, layers)
            return left_behind(self._model, self._layer_ids, layers)

        refuse_unequal_values(find, get_world_group().cpu_group)
        return layers

    def _read_again(self) -> None:
        """SGLang may have made the tensors anew: what moves must be what the model computes with."""
        self._reloaded = False
        try:
            self._cycle.rebind(KEY, self._read())
        except PluginError as error:
            logger.error("no rebalance any more, since the weights were loaded anew: %s", error)
            self._stopped = True

    def _own(self, phy2log: NDArray[np.int32]) -> NDArray[np.int32]:
        size = self._topology.slots_per_rank
        return phy2log[:, self._rank * size : (self._rank + 1) * size]

    def _switch(self, rows: Sequence[int], plan: Plan) -> None:
        """The weights of these layers are in place: put their maps in force."""
        metadata, phy2log = get_global_expert_location_metadata(), plan.placement.phy2log[list(rows)]
        layer_ids = [self._layer_ids[row] for row in rows]
        if self._canaries is not None:
            found, expected = self._canaries[list(rows)].cpu().numpy(), self._own(phy2log)
            if not np.array_equal(found, expected):
                what, fix = f"canaries of layers {layer_ids}", "report this"
                raise mismatch(what, found=found.tolist(), expected=expected.tolist(), fix=fix)
        (changed,) = (metadata.physical_to_logical_map_cpu.numpy()[layer_ids] != phy2log).any(1).nonzero()
        if len(changed):
            switch_maps(metadata, [layer_ids[row] for row in changed], phy2log[changed], self._topology, self._rank)
        if self._tables is not None:  # also where nothing moves: by new weights
            self._tables.switch(rows, plan)
