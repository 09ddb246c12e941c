"""How many tokens every rank sends and receives over RDMA and over NVLink in one layer's dispatch.

Two kinds of kernels. *per node* (DeepEP's normal kernels): a token goes once to every node that it needs, over RDMA to
the rank there that has the same place in its node, and from there over NVLink to every rank that it needs. *per
selection* (DeepEP's low-latency kernels): one message for each of its k experts, over NVLink within the node, over RDMA
out of it.
A combine sends the same counts the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eplb_plugin.topology import Topology

Kernels = Literal["per node", "per selection"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Exchange:
    """Tokens per rank and step: [ranks] each."""

    rdma_out: Floats
    rdma_in: Floats
    nvlink_out: Floats
    nvlink_in: Floats

    def scaled(self, factor: float) -> Exchange:
        parts = (self.rdma_out, self.rdma_in, self.nvlink_out, self.nvlink_in)
        return Exchange(*(part * factor for part in parts))

    @property
    def rdma(self) -> float:
        """The busiest link's tokens, in either direction."""
        return float(max(self.rdma_out.max(), self.rdma_in.max()))

    @property
    def nvlink(self) -> float:
        return float(max(self.nvlink_out.max(), self.nvlink_in.max()))


def counted(slots: NDArray[Any], sources: NDArray[Any], topology: Topology, kernels: Kernels) -> Exchange:
    """slots: [T, k] physical ids that the tokens of `sources: [T]` are dispatched to; negative: padding."""
    node_of = topology.node_of_rank
    of_token = np.repeat(np.arange(len(slots)), slots.shape[1])
    ranks = slots.ravel() // topology.slots_per_rank
    real = slots.ravel() >= 0
    token, rank = of_token[real], ranks[real]
    if kernels == "per node":  # a rank gets a token once, however many of its experts are there
        token, rank = np.unique(np.stack([token, rank]), axis=1)
    source = np.asarray(sources)[token]
    far = node_of[rank] != node_of[source]
    if kernels == "per selection":
        return _links(topology, (source[far], rank[far]), (source[~far], rank[~far]))
    gateway = _peer(topology)[source, node_of[rank]]  # on the own node: the source itself
    crossing, arrived = np.unique(np.stack([token[far], gateway[far]]), axis=1)
    return _links(topology, (np.asarray(sources)[crossing], arrived), (gateway, rank))


def mean_field(
    copies: float, balancedness: float, ingress: float, topology: Topology, batch: int, top_k: int
) -> tuple[Exchange, Floats]:
    """The per-node exchange of `batch` tokens a rank, and [ranks] shares of the selections, from figures alone.

    copies: cross-node copies per token; balancedness: mean / max over ranks; ingress: busiest node's arrivals / mean.
    Rank 0 is the busiest in everything. Over NVLink a token counts k times, which is the most that it can.
    """
    ranks = topology.num_ranks
    arrivals, shares = np.full(ranks, batch * copies), np.full(ranks, 1.0 / ranks)
    inside = np.full(ranks, batch * top_k * (1.0 - 1.0 / topology.ranks_per_node))
    shares[0] = 1.0 / (ranks * balancedness)
    shares[1:] = (1.0 - shares[0]) / max(ranks - 1, 1)
    peak = arrivals.copy()
    peak[0] *= ingress
    busiest = inside.copy()
    busiest[0] /= balancedness
    return Exchange(arrivals, peak, inside, busiest), shares


def _links(topology: Topology, rdma: tuple[Any, Any], nvlink: tuple[Any, Any]) -> Exchange:
    """From (senders, receivers) of every token sent; what a rank sends to itself is sent over nothing."""
    counts = []
    for out, into in (rdma, nvlink):
        moved = out != into
        counts += [np.bincount(ends[moved], minlength=topology.num_ranks).astype(np.float64) for ends in (out, into)]
    return Exchange(*counts)


def _peer(topology: Topology) -> NDArray[np.int64]:
    """[ranks, nodes] the rank with the same place on a node."""
    of_node = np.argsort(topology.node_of_rank, kind="stable").reshape(topology.num_nodes, topology.ranks_per_node)
    place = np.empty(topology.num_ranks, np.int64)
    place[of_node] = np.arange(topology.ranks_per_node)
    return of_node.T[place]
