"""The single definition of every figure that plans are judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dispatch.rules import route
from ..errors import mismatch
from ..jit import Array, kernel
from ..placement import Placement
from ..plan_types import Dispatch, Plan
from ..topology import Topology


@dataclass(frozen=True)
class Score:
    """Figures of one plan on one window of routed tokens; every one is a mean over layers.

    balancedness: mean / max load over ranks. node_fan_out: distinct nodes a token is sent to.
    cross_node_copies: those that are not the token's own. busiest_ingress: copies that arrive at the busiest node,
    relative to the mean node (1.0 = even; also 1.0 where nothing crosses). step_balancedness: of single steps
    (planning/step_balance.py); None where tokens are not known by step.
    """

    balancedness: float
    node_fan_out: float
    cross_node_copies: float
    busiest_ingress: float
    step_balancedness: float | None = None


@dataclass(frozen=True, eq=False)
class LayerScores:
    """The same figures for every layer: [L] float64 each; of steps there is one for all layers."""

    balancedness: NDArray[np.float64]
    node_fan_out: NDArray[np.float64]
    cross_node_copies: NDArray[np.float64]
    busiest_ingress: NDArray[np.float64]
    step_balancedness: float | None = None

    def mean(self) -> Score:
        figures = (self.balancedness, self.node_fan_out, self.cross_node_copies, self.busiest_ingress)
        whole = Score(*(float(figure.mean()) for figure in figures))
        return replace(whole, step_balancedness=self.step_balancedness)


def balancedness(rank_load: ArrayLike) -> float:
    """rank_load: [L, ranks] -> mean over layers of mean/max over ranks; a layer without load counts as balanced."""
    return float(layer_balancedness(rank_load).mean())


def layer_balancedness(rank_load: ArrayLike) -> NDArray[np.float64]:
    """rank_load: [L, ranks] -> [L] mean/max over ranks."""
    load = np.asarray(rank_load, np.float64)
    peak = load.max(axis=1)
    return np.where(peak > 0, load.mean(axis=1) / np.where(peak > 0, peak, 1.0), 1.0)


def expected_rank_load(load: ArrayLike, plan: Plan) -> NDArray[np.float64]:
    """load: [L, E] -> [L, ranks] load of every rank if copies are used by the plan's replica weights."""
    per_expert = np.asarray(load, np.float64)
    placement = plan.placement
    if per_expert.shape != placement.replica_count.shape:
        expected = f"{placement.replica_count.shape}, layers × experts"
        raise mismatch("load", found=f"shape {per_expert.shape}", expected=expected, fix="match the plan")
    per_slot = np.take_along_axis(per_expert, placement.phy2log.astype(np.int64), axis=1) * plan.replica_weights
    return per_slot.reshape(len(per_slot), plan.topology.num_ranks, -1).sum(axis=2)


def moved_slots(placement: Placement, previous: Placement, topology: Topology) -> NDArray[np.int64]:
    """[L] slots whose rank must receive an expert that it did not hold (multiset difference per rank)."""
    placement.moves_from(previous)  # refuses placements that do not compare
    return received_slots(placement, previous, topology).sum(axis=1)


def received_slots(placement: Placement, previous: Placement, topology: Topology) -> NDArray[np.int64]:
    """[L, ranks] experts that a rank must receive because it did not hold them (multiset difference)."""
    shape = (placement.num_layers, topology.num_ranks, topology.slots_per_rank)
    experts = max(placement.num_experts, previous.num_experts)
    old, new = previous.phy2log.reshape(shape), placement.phy2log.reshape(shape)
    return np.stack([_received(o, n, experts) for o, n in zip(old, new, strict=True)])


def judge(topk_ids: ArrayLike, source_rank: ArrayLike, plan: Plan, rule: Dispatch | None = None) -> Score:
    """Route `topk_ids: [L, T, k]` from `source_rank: [T]` by `route()` and take every figure.

    Rows that are all padding are not counted as tokens.
    """
    return judge_layers(topk_ids, source_rank, plan, rule).mean()


def judge_layers(topk_ids: ArrayLike, source_rank: ArrayLike, plan: Plan, rule: Dispatch | None = None) -> LayerScores:
    """As `judge`, layer by layer."""
    ids = np.asarray(topk_ids)
    if ids.ndim != 3 or len(ids) != plan.placement.num_layers:
        expected = f"[{plan.placement.num_layers}, tokens, k]"
        raise mismatch("topk_ids", found=f"shape {ids.shape}", expected=expected, fix="one block of rows per layer")
    sources = np.ascontiguousarray(np.broadcast_to(np.asarray(source_rank), ids.shape[1]))
    counted = [count_routed(rows, sources, plan, layer, rule) for layer, rows in enumerate(ids)]
    rank_load, visited, arriving = (np.array(figure) for figure in zip(*counted, strict=True))
    return layer_scores(ids, rank_load, visited, arriving)


def layer_scores(
    topk_ids: NDArray[Any], rank_load: NDArray[Any], visited: NDArray[Any], arriving: NDArray[Any]
) -> LayerScores:
    """From what `count_slots` has counted of topk_ids: [L, T, k].

    rank_load: [L, ranks]; visited: [L]; arriving: [L, nodes]
    """
    tokens = np.maximum((topk_ids >= 0).any(axis=2).sum(axis=1), 1)
    mean = arriving.mean(axis=1)
    ingress = np.where(mean > 0, arriving.max(axis=1) / np.where(mean > 0, mean, 1.0), 1.0)
    return LayerScores(layer_balancedness(rank_load), visited / tokens, arriving.sum(axis=1) / tokens, ingress)


def count_routed(
    rows: ArrayLike, sources: NDArray[Any], plan: Plan, layer: int, rule: Dispatch | None = None
) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """rows: [T, k] from sources: [T] -> selections per rank, visits of nodes, copies that arrive from other nodes."""
    return count_slots(route(rows, sources, plan, layer, rule), sources, plan.topology)


def count_slots(
    slots: NDArray[Any], sources: NDArray[Any], topology: Topology
) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """The same of tokens that have been routed: slots [T, k], -1 = none."""
    rank_load, visited = np.zeros(topology.num_ranks, np.int64), np.zeros(1, np.int64)
    arriving = np.zeros(topology.num_nodes, np.int64)
    _count(slots, sources, topology.node_of_rank, topology.slots_per_rank, rank_load, visited, arriving)
    return rank_load, int(visited[0]), arriving


@kernel
def _received(old: Array, new: Array, experts: int) -> Array:
    received = np.zeros(old.shape[0], np.int64)
    for rank in range(old.shape[0]):
        missing = np.zeros(experts, np.int64)
        for slot in range(old.shape[1]):
            missing[new[rank, slot]] += 1
            missing[old[rank, slot]] -= 1
        for expert in range(experts):
            received[rank] += max(missing[expert], 0)
    return received


@kernel
def _count(
    slots: Array,
    sources: Array,
    node_of_rank: Array,
    slots_per_rank: int,
    rank_load: Array,
    visited: Array,
    arriving: Array,
) -> None:
    last_token = np.full(arriving.shape[0], -1, np.int64)
    for token in range(slots.shape[0]):
        for k in range(slots.shape[1]):
            if slots[token, k] < 0:
                continue
            rank = slots[token, k] // slots_per_rank
            rank_load[rank] += 1
            node = node_of_rank[rank]
            if last_token[node] != token:
                last_token[node] = token
                visited[0] += 1
                if node != node_of_rank[sources[token]]:
                    arriving[node] += 1
