"""The promise: no plan is less even than vanilla's placement under its hash, unless it says so and why."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Plan, PlanOptions, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.dispatch.cover import allowed_nodes, copy_weights, needed_nodes
from eplb_plugin.dispatch.rules import nearest_table
from eplb_plugin.dispatch.tables import weighted_tables
from eplb_plugin.planning.replicas.at_home import is_at_home, known_from_loads, solve_at_home
from eplb_plugin.planning.traffic.fixed_rules import Cluster
from eplb_plugin.runtime.warm_up import Planned, plan_for
from generators import POLICIES, RULES
from strategies import QUICK

HALF_A_POINT = 0.005
TOKENS = 300


class Traffic(NamedTuple):
    """One layer's tokens [T, k], their load [1, E], and what is recorded of them."""

    rows: np.ndarray
    load: np.ndarray
    statistics: RoutingStatistics


@st.composite
def topologies_with_room(draw: st.DrawFn, experts: int) -> Topology:
    nodes, ranks = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 72]))
    ranks = min(ranks, 72 // nodes)
    least = -(-experts // (nodes * ranks))
    return Topology(nodes, ranks, draw(st.integers(least, least + 6)))


@st.composite
def traffic(draw: st.DrawFn, experts: int, with_tokens: bool) -> Traffic:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    by_rank = 1.0 / np.arange(1, experts + 1) ** draw(st.sampled_from([0.0, 0.3, 0.8, 1.2]))
    wanted = rng.permutation(by_rank) * rng.lognormal(0.0, draw(st.sampled_from([0.0, 0.5, 1.0])), experts)
    top_k = draw(st.integers(1, max(min(4, experts // 2), 1)))
    rows = np.argsort(rng.exponential(size=(TOKENS, experts)) / wanted, axis=1)[:, :top_k]
    load = np.bincount(rows.ravel(), minlength=experts)[None]
    known = RoutingStatistics.from_topk(rows[None], experts) if with_tokens else RoutingStatistics(load)
    return Traffic(rows, load, known)


def covered(made: Plan, seen: Traffic) -> np.ndarray:
    """[P] load under `cover` if every token came from all nodes, and was sent in proportion to weights, not drawn."""
    (held,), node_of_slot, weights = made.placement.phy2log, made.topology.node_of_slot, copy_weights(made, 0)
    nodes, experts = made.topology.num_nodes, seen.load.shape[1]
    masks, slot_load = np.zeros(experts, np.int64), np.zeros(len(held))
    np.bitwise_or.at(masks, held, np.int64(1) << node_of_slot)
    slots = [np.flatnonzero(held == expert) for expert in range(experts)]
    for token, row in enumerate(seen.rows):
        for own in range(nodes):
            needed = needed_nodes(row, own, masks, token)
            for expert in row:
                allowed = allowed_nodes(masks[expert], needed)
                near = [slot for slot in slots[expert] if allowed >> node_of_slot[slot] & 1]
                slot_load[near] += weights[near] / weights[near].sum() / nodes
    return slot_load


def routed(made: Plan, seen: Traffic) -> float:
    """Balancedness that ranks get by the rule, from whole tables or token by token, whatever the plan foresees."""
    topology, (load,) = made.topology, seen.load
    if made.dispatch == "hash":
        held = made.placement.phy2log[0]
        slot_load = load[held] / made.placement.replica_count[0][held]
    elif made.dispatch == "cover":
        slot_load = covered(made, seen)
    else:
        tables = weighted_tables(made)[:, 0] if made.dispatch == "weighted" else None
        tables = nearest_table(made.placement, topology, 0)[..., None] if tables is None else tables
        part = np.broadcast_to(load[:, None] / tables[:, 0].size, tables.shape)
        slot_load = np.bincount(tables.ravel(), weights=part.ravel(), minlength=topology.num_slots)
    rank_load = slot_load.reshape(topology.num_ranks, -1).sum(axis=1)
    return float(rank_load.mean() / rank_load.max())


@pytest.mark.parametrize("rule", RULES)
@QUICK
@given(st.data(), st.sampled_from(POLICIES), st.booleans(), st.booleans())
def test_no_plan_is_less_even_than_vanilla_unless_it_says_so(
    rule: str, data: st.DataObject, policy: str, with_tokens: bool, warm: bool
):
    experts = data.draw(st.sampled_from([4, 8, 12, 32, 60]))
    topology = data.draw(topologies_with_room(experts))
    with_tokens = with_tokens or (topology.num_nodes > 1 and policy == "affinity")
    seen = data.draw(traffic(experts, with_tokens))
    options = PlanOptions(effort="fast")
    if rule == "cover" and topology.num_nodes > 1 and policy == "deepseek" and not with_tokens:
        with pytest.raises(PluginError, match="dispatch cover: found load only"):
            plan(seen.statistics, topology, policy=policy, dispatch=rule)
        return
    previous = None
    if warm:
        before = RoutingStatistics(seen.load[:, ::-1] if data.draw(st.booleans()) else seen.load + 5)
        previous = plan(before, topology, policy="balanced", dispatch=rule)
    made = plan(seen.statistics, topology, policy=policy, dispatch=rule, previous=previous, options=options)
    vanilla = routed(plan(seen.statistics, topology, policy="deepseek", dispatch="hash"), seen)
    assert made.less_even or routed(made, seen) >= vanilla - HALF_A_POINT - 1e-9


def zipf(experts: int, power: float) -> RoutingStatistics:
    return RoutingStatistics(np.round(1e6 / np.arange(1, experts + 1) ** power)[None])


def test_seventy_two_ranks_express_a_twelfth():
    """One large node, where the default has nothing to gain and must not lose: 32 entries cannot say 1/12."""
    topology = Topology(1, 72, 4)
    for statistics in (zipf(60, 0.8), zipf(256, 0.8)):
        seen = Traffic(np.empty((0, 1)), statistics.load, statistics)
        ours, vanilla = (
            plan(statistics, topology, policy=policy, dispatch=rule)
            for policy, rule in (("balanced", "weighted"), ("deepseek", "hash"))
        )
        assert routed(ours, seen) >= routed(vanilla, seen) - HALF_A_POINT
        assert ours.less_even == ()


def test_cover_from_loads_alone_is_as_even_as_it_claims():
    """Without tokens nobody knows how cover concentrates: then experts are placed so that it cannot."""
    rng, experts, topology = np.random.default_rng(0), 256, Topology(8, 8, 5)
    wanted = rng.lognormal(0.0, 1.0, experts)
    rows = np.argsort(rng.exponential(size=(1000, experts)) / wanted, axis=1)[:, :8]
    load = np.bincount(rows.ravel(), minlength=experts)[None]
    seen = Traffic(rows, load, RoutingStatistics(load))
    made = plan(seen.statistics, topology, policy="balanced", dispatch="cover")
    vanilla = plan(seen.statistics, topology, policy="deepseek", dispatch="hash")
    assert known_from_loads(made)
    assert routed(made, seen) >= routed(vanilla, seen) - HALF_A_POINT
    assert made.less_even == ()


def test_cover_that_nobody_can_foresee_says_so():
    """Fewer experts than nodes cannot all be at home: from loads alone the plan claims nothing."""
    made = plan(zipf(4, 0.5), Topology(8, 9, 2), policy="balanced", dispatch="cover")
    (line,) = made.less_even
    assert "(4 experts, 8 nodes)" in line
    rows = np.argsort(np.random.default_rng(0).random((500, 4)), axis=1)[:, :2]
    known = RoutingStatistics.from_topk(rows[None], 4)
    assert not any("cannot be known" in one for one in plan(known, Topology(8, 9, 2), dispatch="cover").less_even)


@QUICK
@given(st.data(), st.integers(1, 40))
def test_at_home_every_expert_is_on_one_node_or_on_all(data: st.DataObject, experts: int):
    topology = data.draw(topologies_with_room(experts))
    load = np.random.default_rng(data.draw(st.integers(0, 1000))).pareto(1.0, experts)
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)
    phy2log = solve_at_home(load, cluster)
    assert set(phy2log.tolist()) == set(range(experts))
    assert experts < topology.num_nodes or is_at_home(phy2log, cluster, experts)


def test_a_bound_on_moves_is_refused_where_cover_is_not_known():
    statistics, topology = zipf(8, 1.0), Topology(2, 2, 3)
    first = plan(statistics, topology, policy="balanced", dispatch="cover")
    with pytest.raises(PluginError, match="a bound on moves") as caught:
        plan(
            statistics, topology, policy="balanced", dispatch="cover", previous=first,
            options=PlanOptions(max_moved_slots=1),
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_server_does_not_pay_for_the_comparison_and_exact_is_not_judged_by_windows(monkeypatch):
    """Servers plan without it, and replicas arranged for single steps are not told to be less even over a window."""
    recorded, topology = zipf(60, 0.8), Topology(1, 72, 4)
    monkeypatch.setattr("eplb_plugin.planning.plan.less_even", lambda *_: ("compared",))
    steps = replace(recorded, steps=np.repeat(recorded.load[None], 2, axis=0))
    assert plan(recorded, topology, policy="balanced", dispatch="nearest").less_even == ("compared",)
    exact = PlanOptions(exact=True)
    assert plan(steps, topology, policy="balanced", dispatch="nearest", options=exact).less_even == ()
    served = Planned(topology, "balanced", "nearest", recorded.num_experts, num_groups=1, top_k=0)
    assert plan_for(served, recorded, None, PlanOptions()).less_even == ()


def test_every_reason_is_one_line_with_layer_and_amount():
    """Vanilla's placement under nearest is what it is: the plan does not hide it."""
    made = plan(zipf(60, 0.8), Topology(1, 72, 4), policy="deepseek", dispatch="nearest")
    (line,) = made.less_even
    assert line.startswith("1 of 1 layers are less even than vanilla's placement under its hash, by up to 0.07")
    assert line.endswith(
        "(layer 0): policy deepseek takes vanilla's placement, which dispatch nearest uses less evenly"
    )
