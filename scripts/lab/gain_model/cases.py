"""What is compared: arms planned on one window of tokens and timed on the next, at several sizes and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan, route, route_step
from eplb_plugin.errors import mismatch
from eplb_plugin.observe.judging import judge_draws, judge_steps
from eplb_plugin.peo.cost import Traffic
from eplb_plugin.plan_types import Plan

from .clusters import Cluster, Shape, redundant_experts
from .exchange import Kernels, counted, mean_field
from .step import LayerTime, layer_time, quotas_us

SAMPLE = 8192  # tokens of the first window whose experts are known together, as in a server
ARMS: dict[str, tuple[Any, Any]] = {  # policy, dispatch rule; the first is the reference
    "vanilla": ("deepseek", "hash"),
    "affinity, hash": ("affinity", "hash"),
    "affinity, weighted": ("affinity", "weighted"),
    "affinity, cover": ("affinity", "cover"),
}
EXACT = "exact, cover"  # where steps are known: planned for quotas of every step, which keep the wishes of `cover`


@dataclass(frozen=True)
class Batch:
    """tokens: of every rank in a step."""

    name: str
    tokens: int
    kernels: Kernels


BATCHES = (
    Batch("decode, low latency", 128, "per selection"),
    Batch("decode, once per node", 128, "per node"),
    Batch("prefill", 4096, "per node"),
)


@dataclass(frozen=True)
class Inputs:
    """What the model is given of an arm: figures of the unseen window, as in `eplb-plugin replay`; balance is that of
    single steps where they are known."""

    copies: float
    balancedness: float
    ingress: float


@dataclass(frozen=True)
class Row:
    """times: by arm, mean over the judged layers."""

    ranks: int
    batch: Batch
    inputs: dict[str, Inputs]
    times: dict[str, LayerTime]


def of_traffic(
    topk_ids: NDArray[Any], shape: Shape, cluster: Cluster, ranks: int, ranks_per_node: int,
    step_tokens: int | None = None,
) -> Iterator[Row]:  # fmt: skip
    """topk_ids: [L, T, k]: arms are planned on the first half of the tokens, and judged on the second.

    step_tokens: of a step of all ranks; each is timed, and `exact` is an arm. None: the window is timed as a whole.
    """
    topology = topology_of(shape, ranks, ranks_per_node)
    middle = topk_ids.shape[1] // 2
    known, unseen = topk_ids[:, :middle], topk_ids[:, middle:]
    window = _window(known, shape.model.num_experts, step_tokens)
    sources = np.random.default_rng(0).permutation(np.arange(unseen.shape[1]) % ranks)
    plans = {
        name: plan(window, topology, policy=policy, dispatch=rule, num_groups=shape.groups)
        for name, (policy, rule) in ARMS.items()
    }
    if step_tokens is not None:
        plans[EXACT] = plan(
            window, topology, policy="affinity", dispatch="cover", num_groups=shape.groups,
            options=PlanOptions(exact=True),
        )  # fmt: skip
    inputs = {name: _inputs(unseen, made, step_tokens, name == EXACT) for name, made in plans.items()}
    parts = _steps(unseen.shape[1], step_tokens)
    routed = {name: _routed(unseen, sources, made, parts, name == EXACT) for name, made in plans.items()}
    for batch in BATCHES:
        times = {}
        for name, slots in routed.items():
            found = [
                _time(rows, sources[part], plans[name], shape, cluster, batch) for layer in slots
                for rows, part in zip(layer, parts, strict=True)
            ]  # fmt: skip
            times[name] = replace(_mean(found), quotas=quotas_us(ranks) if name == EXACT else 0.0)
        yield Row(ranks, batch, inputs, times)


def of_figures(arms: dict[str, Inputs], shape: Shape, cluster: Cluster, ranks: int, ranks_per_node: int) -> list[Row]:
    """From figures alone, by `mean_field`: kernels that send per selection are left out, they are not known."""
    topology = topology_of(shape, ranks, ranks_per_node)
    rows = []
    for batch in BATCHES:
        if batch.kernels == "per selection":
            continue
        times = {}
        for name, one in arms.items():
            exchange, shares = mean_field(
                one.copies, one.balancedness, one.ingress, topology, batch.tokens, shape.model.top_k
            )
            local = np.repeat(shares[:, None] / topology.slots_per_rank, topology.slots_per_rank, axis=1)
            times[name] = layer_time(exchange, Traffic(shape.model, local, batch.tokens), cluster)
        rows.append(Row(ranks, batch, arms, times))
    return rows


def topology_of(shape: Shape, ranks: int, ranks_per_node: int) -> Topology:
    if ranks_per_node < 1 or ranks % ranks_per_node:
        raise mismatch("--ranks", found=ranks, expected=f"a multiple of {ranks_per_node} a node", fix="count again")
    slots = (shape.model.num_experts + redundant_experts(shape, ranks)) // ranks
    return Topology(ranks // ranks_per_node, ranks_per_node, slots)


def _window(known: NDArray[Any], experts: int, step_tokens: int | None) -> RoutingStatistics:
    """Load of all tokens, but whole rows of the newest few only."""
    steps = None if step_tokens is None else np.arange(known.shape[1]) // step_tokens
    full = RoutingStatistics.from_topk(known, experts, steps=steps)
    few = RoutingStatistics.from_topk(known[:, -SAMPLE:], experts)
    return RoutingStatistics(full.load, full.coactivation, few.sample, full.num_tokens, steps=full.steps)


def _inputs(unseen: NDArray[Any], made: Plan, step_tokens: int | None, exact: bool) -> Inputs:
    if step_tokens is None:
        one = judge_draws(unseen, made, 1, 0).mean()
        return Inputs(one.cross_node_copies, one.balancedness, one.busiest_ingress)
    one = judge_steps(unseen, made, step_tokens, 1, 0, exact=exact).mean()
    assert one.step_balancedness is not None
    return Inputs(one.cross_node_copies, one.step_balancedness, one.busiest_ingress)


def _steps(tokens: int, step_tokens: int | None) -> list[slice]:
    """Whole ones; or one of all tokens."""
    size = step_tokens or tokens
    return [slice(first, first + size) for first in range(0, tokens - size + 1, size)]


def _routed(
    unseen: NDArray[Any], sources: NDArray[Any], made: Plan, parts: list[slice], exact: bool
) -> list[list[NDArray[Any]]]:
    """Slots of every step of every layer."""
    send: Any = route_step if exact else route
    return [[send(rows[part], sources[part], made, layer) for part in parts] for layer, rows in enumerate(unseen)]


def _time(
    slots: NDArray[Any], sources: NDArray[Any], made: Plan, shape: Shape, cluster: Cluster, batch: Batch
) -> LayerTime:
    """Of one layer, from counts that are scaled to the batch: of a window, without the noise of single steps, or of one
    step."""
    topology = made.topology
    exchange = counted(slots, sources, topology, batch.kernels)
    load = np.bincount(slots[slots >= 0], minlength=topology.num_slots).astype(np.float64)
    traffic = Traffic(shape.model, (load / load.sum()).reshape(topology.num_ranks, -1), batch.tokens)
    return layer_time(exchange.scaled(batch.tokens * topology.num_ranks / len(slots)), traffic, cluster)


def _mean(times: list[LayerTime]) -> LayerTime:
    dispatch, gemm, combine = np.mean([(one.dispatch, one.gemm, one.combine) for one in times], axis=0).tolist()
    return LayerTime(dispatch, gemm, combine, times[0].bound)
