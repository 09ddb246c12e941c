"""Time of one layer with experts: dispatch, grouped GEMMs, combine.

Each is as long as for the rank that needs longest, because all wait for it. The exchange takes the longer of what its
RDMA and its NVLink take, the GEMMs are a roofline of weights from HBM and padded operations (peo/timeline.py).
Attention, shared experts and all else of a step are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb_plugin.peo.cost import Traffic
from eplb_plugin.peo.ops import Kind, Op
from eplb_plugin.peo.timeline import gemm_us

from .clusters import Cluster
from .exchange import Exchange


@dataclass(frozen=True)
class LayerTime:
    """µs of each part; `bound`: what decides the exchange; quotas: of `exact`, before the dispatch."""

    dispatch: float
    gemm: float
    combine: float
    bound: str
    quotas: float = 0.0

    @property
    def in_turn(self) -> float:
        """One after the other."""
        return self.quotas + self.dispatch + self.gemm + self.combine

    @property
    def overlapped(self) -> float:
        """At best, with two batches in turn: exchange of one beside the GEMMs of the other."""
        return max(self.gemm, self.quotas + self.dispatch + self.combine)


# Estimates, both: a ring gather by NCCL's own model (src/graph/tuning.cc, constants in issue 1334: 11, 24, 45, 86 µs at
# 8, 16, 32, 64 ranks), and three small kernels that count, solve and map.
GATHER_US_PER_RANK, SOLVE_US = 1.35, 16.0


def quotas_us(ranks: int) -> float:
    """What `exact` adds to a layer where ranks have to tell each other their counts."""
    return GATHER_US_PER_RANK * ranks + SOLVE_US


def layer_time(exchange: Exchange, traffic: Traffic, cluster: Cluster) -> LayerTime:
    """exchange: tokens of a step; traffic: [ranks, local experts] shares of its selections, and the batch."""
    parts, bound = [], "-"
    kinds: tuple[Kind, ...] = ("dispatch send", "combine send")
    for kind in kinds:
        size = traffic.token_bytes(kind)
        rdma = exchange.rdma * size / (1e3 * cluster.gpu.link_gbs)
        nvlink = exchange.nvlink * size / (1e3 * cluster.nvlink_gbs)
        latency = cluster.gpu.link_us if exchange.rdma else 0.0
        parts.append(max(rdma, nvlink) + latency + cluster.gpu.launch_us)
        bound = "RDMA" if rdma >= nvlink else "NVLink"
    gemm = _gemm(traffic, cluster)
    return LayerTime(parts[0], float(gemm.max()), parts[1], bound)


def _gemm(traffic: Traffic, cluster: Cluster) -> NDArray[np.float64]:
    """[ranks] µs of both GEMMs on all SMs."""
    every, sms = (0, traffic.num_local_experts), cluster.gpu.num_sms
    kinds: tuple[Kind, ...] = ("gemm up", "gemm down")
    return sum(
        (gemm_us(Op(kind, "main", sms, 0, 1, every), cluster.gpu, traffic, sms) for kind in kinds),
        np.zeros(traffic.num_ranks),
    )
