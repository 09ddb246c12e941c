"""What every plan must fulfil, for every policy and rule."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Placement, Plan, PlanOptions, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.dispatch.rules import replica_weights
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge, moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import POLICIES, RULES, SHAPES, solves
from strategies import QUICK, Case, cases, loads

policies, rules = st.sampled_from(POLICIES), st.sampled_from(RULES)


def check(made: Plan, statistics: RoutingStatistics, topology: Topology, twins_excused: bool = False) -> None:
    """A plan is a placement of every expert, shares sum to 1, and no rank has twins unless they may even it out."""
    placement = made.placement
    assert placement.phy2log.shape == (statistics.num_layers, topology.num_slots)
    assert placement.num_experts == statistics.num_experts
    assert np.array_equal(placement.layer_ids, statistics.layer_ids)
    layer, expert, copy = np.nonzero(placement.log2phy >= 0)
    assert (placement.phy2log[layer, placement.log2phy[layer, expert, copy]] == expert).all()
    assert len(layer) == placement.phy2log.size
    if topology.slots_per_rank <= statistics.num_experts and not twins_excused:
        by_rank = np.sort(placement.phy2log.reshape(-1, topology.slots_per_rank), axis=1)
        assert (np.diff(by_rank, axis=1) > 0).all(), "an expert twice on one rank"
    sums = np.zeros(placement.replica_count.shape)
    for row, (slots, weights) in enumerate(zip(placement.phy2log, made.replica_weights, strict=True)):
        np.add.at(sums[row], slots, weights)
    np.testing.assert_allclose(sums, 1.0)


def balance(made: Plan, statistics: RoutingStatistics) -> float:
    return balancedness(expected_rank_load(statistics.load, made))


@pytest.mark.parametrize(("shape", "policy", "rule"), solves(), ids=str)
def test_every_shape(shape, policy, rule):
    statistics, topology = shape.statistics(), shape.topology
    made = plan(statistics, topology, policy=policy, dispatch=rule, num_groups=shape.groups)
    check(made, statistics, topology, twins_excused=policy != "affinity")
    assert made.dispatch == rule
    assert made.seconds > 0


@QUICK
@given(cases(), policies, rules, st.booleans(), st.data())
def test_any_input_gives_a_valid_plan(case: Case, policy: str, rule: str, warm: bool, data: st.DataObject):
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3, 4) if case.statistics.num_experts % g == 0]))
    previous = case.previous if warm else None
    made = plan(case.statistics, case.topology, policy=policy, dispatch=rule, previous=previous, num_groups=groups)
    even = plan(case.statistics, case.topology, policy="balanced", dispatch="hash")  # affinity falls back on it
    excused = warm or policy != "affinity" or case.topology.num_nodes == 1 or has_twins(even)
    check(made, case.statistics, case.topology, twins_excused=excused)


@QUICK
@given(st.data(), rules)
def test_loads_of_any_kind(data: st.DataObject, rule: str):
    experts = data.draw(st.integers(1, 12))
    statistics = RoutingStatistics(data.draw(loads(2, experts)))
    topology = Topology(data.draw(st.integers(1, 3)), 2, data.draw(st.integers(-(-experts // 2), experts + 2)))
    made = plan(statistics, topology, policy="balanced", dispatch=rule)
    check(made, statistics, topology, twins_excused=True)


@QUICK
@given(st.data())
def test_balanced_is_never_worse_than_vanilla_on_its_own_objective(data: st.DataObject):
    experts = data.draw(st.integers(1, 16))
    statistics = RoutingStatistics(data.draw(loads(1, experts)))
    topology = Topology(1, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)) + experts // 2)
    if topology.num_slots < experts:
        return
    ours, vanilla = (plan(statistics, topology, policy=name) for name in ("balanced", "deepseek"))
    twins = topology.slots_per_rank > 1 and has_twins(vanilla)
    assert twins or balance(ours, statistics) >= balance(vanilla, statistics) - 1e-3


def has_twins(made: Plan) -> bool:
    """Vanilla may put two copies on one rank, which can look better balanced and serves nobody."""
    by_rank = np.sort(made.placement.phy2log.reshape(-1, made.topology.slots_per_rank), axis=1)
    return bool((np.diff(by_rank, axis=1) == 0).any())


@QUICK
@given(cases(), policies, rules)
def test_same_input_same_plan(case: Case, policy: str, rule: str):
    first, second = (
        plan(case.statistics, case.topology, policy=policy, dispatch=rule, previous=case.previous) for _ in range(2)
    )
    assert first.digest == second.digest
    assert np.array_equal(first.placement.phy2log, second.placement.phy2log)


def test_same_plan_for_any_number_of_threads():
    script = """
from generators import SHAPES
from eplb_plugin import plan
for shape in SHAPES[1:3]:
    for rule in ("hash", "nearest", "weighted", "cover"):
        first = plan(shape.statistics(), shape.topology, dispatch=rule)
        second = plan(shape.statistics(seed=1), shape.topology, dispatch=rule, previous=first.placement)
        print(first.digest, second.digest)
"""
    path = os.pathsep.join(sys.path)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env=os.environ | {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONPATH": path},
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_inputs_are_left_alone():
    shape = SHAPES[1]
    statistics = shape.statistics()
    previous = plan(statistics, shape.topology, policy="deepseek").placement
    kept = [a.copy() for a in (statistics.load, statistics.coactivation, statistics.sample, previous.phy2log)]
    plan(statistics, shape.topology, previous=previous, dispatch="nearest")
    for before, now in zip(
        kept, (statistics.load, statistics.coactivation, statistics.sample, previous.phy2log), strict=True
    ):
        assert np.array_equal(before, now)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nodes", [2, 4])
def test_affinity_sends_fewer_copies_across_nodes(nodes: int, rule: str):
    router = ClusteredRouter(4, 32, 4, num_topics=4, strength=8.0, purity=1.0, skew=0.3)
    topology = Topology(nodes, 1, 36 // nodes)
    statistics, later = RoutingStatistics.from_topk(router.window(4096, 0), 32), router.window(4096, 1)
    sources = np.arange(4096) % topology.num_ranks
    vanilla = judge(later, sources, plan(statistics, topology, policy="deepseek", dispatch="hash"))
    ours = judge(later, sources, plan(statistics, topology, policy="affinity", dispatch=rule))
    assert ours.cross_node_copies < 0.8 * vanilla.cross_node_copies
    assert ours.balancedness > vanilla.balancedness - 0.02


def test_co_activation_alone_is_enough():
    shape = SHAPES[2]
    full = shape.statistics(count=4096)
    pairs_only = RoutingStatistics(full.load, full.coactivation)
    later, sources = shape.tokens(count=4096, seed=1), np.arange(4096) % 32
    vanilla, ours = (
        judge(later, sources, plan(pairs_only, shape.topology, policy=policy)) for policy in ("deepseek", "affinity")
    )
    assert ours.cross_node_copies < vanilla.cross_node_copies


def test_replica_weights_follow_the_rule():
    shape = SHAPES[2]
    for rule in ("hash", "nearest"):  # test_weighing.py has the others
        made = plan(shape.statistics(), shape.topology, dispatch=rule)
        assert np.array_equal(made.replica_weights, replica_weights(made.placement, shape.topology, rule))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"topology": Topology(2, 2, 1)}, "num_slots"),
        ({"policy": "random"}, "'random'"),
        ({"dispatch": "random"}, "'random'"),
        ({"num_groups": 3}, "num_groups"),
        ({"num_groups": 0}, "num_groups"),
        ({"statistics": RoutingStatistics(np.ones((2, 8)))}, "co-activation"),
        ({"previous": Placement(np.arange(8, dtype=np.int32)[None])}, "previous"),
        ({"previous": Placement(np.tile(np.arange(12, dtype=np.int32), (2, 1)))}, "previous"),
        ({"previous": Placement(np.tile(np.arange(12, dtype=np.int32) % 8, (2, 1)), [3, 4])}, "layer_ids"),
        ({"previous": Placement(np.tile(np.arange(12, dtype=np.int32) % 7, (2, 1)))}, "previous"),
        (
            {
                "policy": "deepseek",
                "previous": Placement(np.tile(np.arange(12, dtype=np.int32) % 8, (2, 1))),
                "options": PlanOptions(max_moved_slots=3),
            },
            "max_moved_slots",
        ),
    ],
)
def test_bad_input_is_one_line(change, word):
    rows = np.random.default_rng(0).integers(0, 8, (2, 20, 2))
    arguments = {"statistics": RoutingStatistics.from_topk(rows, 8), "topology": Topology(2, 2, 3)} | change
    with pytest.raises(PluginError, match=word) as caught:
        plan(**arguments)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)


def test_one_node_needs_no_co_activation():
    statistics = RoutingStatistics(np.arange(16).reshape(2, 8))
    made = plan(statistics, Topology(1, 4, 3))
    assert np.array_equal(
        made.placement.phy2log, plan(statistics, Topology(1, 4, 3), policy="balanced").placement.phy2log
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_window_plans_something(policy):
    statistics = RoutingStatistics.from_topk(np.full((2, 5, 2), -1), 8)
    made = plan(statistics, Topology(2, 2, 3), policy=policy)
    check(made, statistics, made.topology, twins_excused=policy != "affinity")
    again = plan(statistics, Topology(2, 2, 3), policy=policy, previous=made.placement)
    assert moved_slots(again.placement, made.placement, made.topology).sum() == 0


@pytest.mark.parametrize("policy", ["deepseek", "balanced", "affinity"])
def test_planning_on_nothing_moves_nothing(policy: str, caplog):
    """A window without a selection says nothing of where experts should be; its plan goes on, and the log says why."""
    shape = SHAPES[1]
    before = plan(shape.statistics(), shape.topology, policy="balanced", dispatch="weighted")
    nothing = RoutingStatistics.from_topk(
        np.full((before.placement.num_layers, 8, 2), -1), before.placement.num_experts
    )
    with caplog.at_level("INFO", "eplb_plugin"):
        after = plan(nothing, shape.topology, policy=policy, previous=before)
        others = [
            plan(nothing, shape.topology, policy=policy, previous=before.placement, dispatch=rule) for rule in RULES
        ]
    assert after.digest == before.digest
    for rule, other in zip(RULES, others, strict=True):
        assert np.array_equal(other.placement.phy2log, before.placement.phy2log)
        assert (other.source_weights is not None, other.cover_weights is not None) == (
            rule == "weighted",
            rule == "cover",
        )
    assert "no selection" in caplog.text
