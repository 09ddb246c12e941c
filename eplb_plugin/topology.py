"""Where the physical expert slots lie: slots on ranks, ranks on nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import mismatch


@dataclass(frozen=True)
class Topology:
    """An EP group: `num_nodes` nodes × `ranks_per_node` ranks × `slots_per_rank` physical expert slots per layer.

    A *node* is the fast-link domain: a server, or an NVLink domain. Slots are numbered rank by rank, as both engines
    do: slot `p` belongs to rank `p // slots_per_rank`. Ranks of a node are contiguous unless made by `from_nodes`.

    Raises PluginError if a count is not positive, or the nodes have different numbers of ranks.
    """

    num_nodes: int
    ranks_per_node: int
    slots_per_rank: int
    _nodes: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("num_nodes", "ranks_per_node", "slots_per_rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                fix = f"pass {name} as a whole number from 1 up"
                raise mismatch(f"topology.{name}", found=repr(value), expected="a count >= 1", fix=fix)
            object.__setattr__(self, name, int(value))
        if not self._nodes:
            nodes = tuple(rank // self.ranks_per_node for rank in range(self.num_ranks))
            object.__setattr__(self, "_nodes", nodes)

    @classmethod
    def from_nodes(cls, node_of_rank: Sequence[int], slots_per_rank: int) -> Topology:
        """Topology from the node number of every rank (any numbering; ranks of a node need not be contiguous)."""
        labels = sorted(set(node_of_rank))
        nodes = tuple(labels.index(node) for node in node_of_rank)
        counts = {nodes.count(node) for node in range(len(labels))}
        if len(counts) != 1:
            found = sorted(nodes.count(node) for node in range(len(labels)))
            raise mismatch(
                "topology.node_of_rank",
                found=f"{found} ranks per node",
                expected="the same number of ranks on every node",
                fix="declare nodes of equal size (split the larger ones into equal fast-link domains)",
            )
        return cls(len(labels), counts.pop(), slots_per_rank, nodes)

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def num_slots(self) -> int:
        """Physical experts per layer, over all ranks."""
        return self.num_ranks * self.slots_per_rank

    @property
    def node_of_rank(self) -> NDArray[np.int32]:
        """[ranks] int32."""
        return np.array(self._nodes, np.int32)

    @property
    def rank_of_slot(self) -> NDArray[np.int32]:
        """[slots] int32."""
        return np.repeat(np.arange(self.num_ranks, dtype=np.int32), self.slots_per_rank)

    @property
    def node_of_slot(self) -> NDArray[np.int32]:
        """[slots] int32."""
        return np.repeat(self.node_of_rank, self.slots_per_rank)
