"""`route_step`: every selection reaches its expert, ranks are even in every step, wishes keep tokens near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan, route, route_step
from eplb_plugin.dispatch.exact.replicas import replicas_of
from eplb_plugin.dispatch.exact.step import count_step, solve_counts, wished_nodes
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.workloads.routing import ClusteredRouter
from strategies import QUICK, placements, token_rows, topologies

TOPOLOGY = Topology(2, 4, 10)  # of 64 experts


def figures(slots, sources, topology: Topology) -> tuple[float, int]:
    """Balancedness of one step, and copies of tokens that reach other nodes."""
    load = np.bincount(slots[slots >= 0] // topology.slots_per_rank, minlength=topology.num_ranks)
    node, own = topology.node_of_slot[slots], topology.node_of_rank[sources]
    crossing = [((node == other).any(1) & (own != other)).sum() for other in range(topology.num_nodes)]
    return load.mean() / load.max(), int(sum(crossing))


@pytest.fixture(scope="module")
def steps() -> list[np.ndarray]:
    window = ClusteredRouter(1, 64, 6, num_topics=6).window(6 * 512, 1)[0]
    return list(window.reshape(6, 512, 6))


@QUICK
@given(st.data())
def test_mapped_selections_are_the_quotas(data: st.DataObject):
    experts = data.draw(st.integers(1, 12))
    topology = data.draw(topologies(experts))
    made = plan_of(data.draw(placements(1, experts, topology.num_slots)), topology, "hash")
    rows = data.draw(token_rows(1, experts))[0]
    sources = np.random.default_rng(len(rows)).integers(0, topology.num_ranks, len(rows))
    rule = data.draw(st.sampled_from(["hash", "cover"]))
    slots = route_step(rows, sources, made, 0, dispatch=rule)
    assert ((slots < 0) == (rows < 0)).all()
    assert (made.placement.phy2log[0][slots[rows >= 0]] == rows[rows >= 0]).all()
    replicas, sources = replicas_of(made.placement.phy2log[0], topology), sources.astype(np.int32)
    wishes = wished_nodes(rows, sources, replicas, rule == "cover")
    counts, base = count_step(rows, sources, wishes, replicas)
    quota = solve_counts(replicas, counts.sum(0, dtype=np.int32), base)
    served = np.bincount(slots[slots >= 0], minlength=topology.num_slots)
    assert served[replicas.slot].tolist() == quota.tolist()


def test_ranks_are_even_in_steps_where_tables_are_not(steps):
    made = plan(RoutingStatistics.from_topk(np.concatenate(steps)[None], 64), TOPOLOGY, policy="balanced")
    sources = np.arange(512) % 8
    by_tables = [figures(route(step, sources, made, 0), sources, TOPOLOGY)[0] for step in steps]
    in_steps = [figures(route_step(step, sources, made, 0), sources, TOPOLOGY)[0] for step in steps]
    assert np.mean(in_steps) > np.mean(by_tables) + 0.03
    assert min(in_steps) > 0.99


def test_wishes_under_cover_spare_copies(steps):
    statistics = RoutingStatistics.from_topk(np.concatenate(steps)[None], 64)
    topology = Topology(4, 2, 12)
    made = plan(statistics, topology, dispatch="cover")
    sources = np.arange(512) % 8
    near, covered = (
        sum(figures(route_step(step, sources, made, 0, dispatch=rule), sources, topology)[1] for step in steps)
        for rule in ("weighted", "cover")
    )
    assert covered < 0.97 * near
    default = [route_step(step, sources, made, 0) for step in steps]
    assert sum(figures(slots, sources, topology)[1] for slots in default) == covered, "the plan's own rule wishes"


def test_a_tolerance_spares_copies(steps):
    made = plan(RoutingStatistics.from_topk(np.concatenate(steps)[None], 64), TOPOLOGY)
    sources = np.arange(512) % 8
    tight, loose = (
        [figures(route_step(step, sources, made, 0, tolerance=tolerance), sources, TOPOLOGY) for step in steps]
        for tolerance in (0.0, 0.2)
    )
    assert sum(copies for _, copies in loose) < sum(copies for _, copies in tight)
    assert min(balance for balance, _ in loose) > 0.8


def test_what_does_not_fit_is_refused(steps):
    made = plan(RoutingStatistics.from_topk(steps[0][None], 64), TOPOLOGY, policy="balanced")
    with pytest.raises(PluginError, match="tolerance: found 2"):
        route_step(steps[0], 0, made, 0, tolerance=2.0)
    with pytest.raises(PluginError, match="layer: found 1"):
        route_step(steps[0], 0, made, 1)
    with pytest.raises(PluginError, match="source_rank"):
        route_step(steps[0], 8, made, 0)
