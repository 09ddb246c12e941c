"""Hypothesis strategies shared by all tests: topologies, loads, statistics, placements, whole planning cases."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology

# no deadline: the first example compiles kernels; derandomized: a failure here is a failure everywhere
QUICK = settings(deadline=None, max_examples=60, derandomize=True)


class Case(NamedTuple):
    """statistics that fit a topology, and a placement of the same shape that planning may start from."""

    statistics: RoutingStatistics
    topology: Topology
    previous: Placement


@st.composite
def topologies(draw: st.DrawFn, num_experts: int = 1, max_nodes: int = 4, max_ranks_per_node: int = 3) -> Topology:
    """Room for `num_experts` and up to three more slots per rank; ranks of a node are not always contiguous."""
    nodes, per_node = draw(st.integers(1, max_nodes)), draw(st.integers(1, max_ranks_per_node))
    slots = -(-num_experts // (nodes * per_node)) + draw(st.integers(0, 3))
    node_of_rank = sorted(list(range(nodes)) * per_node)
    if draw(st.booleans()):
        node_of_rank = draw(st.permutations(node_of_rank))
    return Topology.from_nodes(node_of_rank, max(slots, 1))


@st.composite
def loads(draw: st.DrawFn, num_layers: int, num_experts: int) -> NDArray[np.int64]:
    """[L, E] int64: zero, one expert with everything, small integers with ties, or heavily skewed."""
    kind = draw(st.sampled_from(["zero", "one expert", "ties", "skewed"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    load = np.zeros((num_layers, num_experts), np.int64)
    if kind == "one expert":
        load[np.arange(num_layers), rng.integers(0, num_experts, num_layers)] = 1000
    elif kind == "ties":
        load = rng.integers(0, 4, load.shape)
    elif kind == "skewed":
        load = np.rint(100 * np.exp(rng.normal(0, 1.5, load.shape))).astype(np.int64)
    return load


@st.composite
def token_rows(draw: st.DrawFn, num_layers: int, num_experts: int, max_tokens: int = 40) -> NDArray[np.int64]:
    """[L, T, k] distinct logical ids per token, some of it -1 padding; experts form clusters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, top_k = draw(st.integers(0, max_tokens)), draw(st.integers(1, min(4, num_experts)))
    cluster = rng.integers(0, 3, (num_layers, num_experts))
    wanted = rng.integers(0, 3, (num_layers, tokens))
    score = rng.random((num_layers, tokens, num_experts)) + (cluster[:, None, :] == wanted[:, :, None])
    rows = np.argsort(-score, axis=2)[:, :, :top_k]
    rows[rng.random(rows.shape) < draw(st.sampled_from([0.0, 0.1]))] = -1
    return rows


@st.composite
def statistics(draw: st.DrawFn, num_layers: int, num_experts: int) -> RoutingStatistics:
    """With sample and co-activation, or with either of them alone; in one part, or in several that may be empty."""
    full = RoutingStatistics.from_topk(draw(token_rows(num_layers, num_experts)), num_experts)
    kept = draw(st.sampled_from(["both", "sample", "pairs"]))
    pairs = None if kept == "sample" else full.coactivation
    parts = draw(load_parts(full.load)) if draw(st.booleans()) else None
    return RoutingStatistics(full.load, pairs, None if kept == "pairs" else full.sample, parts=parts)


@st.composite
def load_parts(draw: st.DrawFn, load: NDArray[np.int64]) -> NDArray[np.int64]:
    """[W, L, E] whose sum is the load: like each other but for noise, or every expert busy in one of them alone."""
    rng, number = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(1, 12))
    taste = rng.dirichlet(np.full(number, draw(st.sampled_from([0.05, 50.0]))), load.shape)
    return np.moveaxis(rng.multinomial(load, taste), -1, 0)


@st.composite
def placements(draw: st.DrawFn, num_layers: int, num_experts: int, num_slots: int) -> Placement:
    """Any placement that holds every expert, twins on a rank included."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extra = rng.integers(0, num_experts, (num_layers, num_slots - num_experts))
    slots = np.concatenate([np.tile(np.arange(num_experts), (num_layers, 1)), extra], axis=1)
    return Placement(rng.permuted(slots, axis=1).astype(np.int32))


@st.composite
def cases(draw: st.DrawFn, max_experts: int = 14, **shape: Any) -> Case:
    layers, experts = draw(st.integers(1, 2)), draw(st.integers(1, max_experts))
    topology = draw(topologies(experts, **shape))
    return Case(draw(statistics(layers, experts)), topology, draw(placements(layers, experts, topology.num_slots)))


@st.composite
def migrations(draw: st.DrawFn, ranks: int | None = None, max_layers: int = 3) -> tuple[Any, Any, Topology]:
    """old, new [L, P] int32 and their topology: unrelated placements, or some slots changed, or none."""
    experts = draw(st.integers(1, 12))
    if ranks is None:
        topology = draw(topologies(experts, max_nodes=4, max_ranks_per_node=4))
    else:
        nodes = draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
        node_of_rank = draw(st.permutations(sorted(list(range(nodes)) * (ranks // nodes))))
        topology = Topology.from_nodes(node_of_rank, -(-experts // ranks) + draw(st.integers(0, 3)))
    layers = draw(st.integers(1, max_layers))
    old = draw(placements(layers, experts, topology.num_slots)).phy2log
    new = draw(placements(layers, experts, topology.num_slots)).phy2log
    if draw(st.booleans()):
        new = old.copy()
        for layer in range(layers):  # exchanges keep every expert placed
            for one, other in draw(st.lists(st.tuples(*[st.integers(0, topology.num_slots - 1)] * 2), max_size=3)):
                new[layer, [one, other]] = new[layer, [other, one]]
    return old, new, topology


@st.composite
def weighted_plans(draw: st.DrawFn) -> Plan:
    """Any placement with any source weights, zeros included."""
    experts = draw(st.integers(1, 8))
    topology = draw(topologies(experts))
    placement = draw(placements(2, experts, topology.num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    drawn = rng.random((topology.num_nodes, *placement.phy2log.shape)) * (rng.random(placement.phy2log.shape) < 0.7)
    weights = np.zeros_like(drawn)
    for node, layer in np.ndindex(topology.num_nodes, 2):
        held = placement.phy2log[layer]
        sums = np.bincount(held, weights=drawn[node, layer], minlength=experts)
        even = 1.0 / placement.replica_count[layer][held]
        weights[node, layer] = np.where(sums[held] > 0, drawn[node, layer] / np.where(sums > 0, sums, 1)[held], even)
    return Plan(placement, topology, "weighted", weights.mean(axis=0), 0.0, weights)


@st.composite
def cover_plans(draw: st.DrawFn, max_nodes: int = 4) -> Plan:
    """Any placement with any weights for rule `cover`; two layers. Few different weights, so that there are ties."""
    experts = draw(st.integers(1, 10))
    topology = draw(topologies(experts, max_nodes=max_nodes, max_ranks_per_node=2 if max_nodes > 4 else 3))
    placement = draw(placements(2, experts, topology.num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = rng.integers(1, 1 + draw(st.sampled_from([1, 3, 255])), placement.phy2log.shape).astype(np.int32)
    return Plan(placement, topology, "cover", np.full(weights.shape, 0.5), 0.0, cover_weights=weights)
