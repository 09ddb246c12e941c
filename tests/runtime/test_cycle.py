"""A rebalance of two models over several processes: planned, moved, put in force, on every rank alike."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology
from eplb_plugin.dispatch import rules
from eplb_plugin.migration import transfer
from eplb_plugin.migration.layout import expert_rows
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Dispatch
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime import proposal
from eplb_plugin.runtime.cycle import Cycle
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.outcome import Outcome
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.runtime.warm_up import Planned
from eplb_plugin.settings.config import parse_config
from expert_models import Model, groups
from processes import run_ranks

TOPOLOGY, EXPERTS, LAYERS = Topology(2, 2, 4), 12, {"target": 3, "draft": 1}


class Group:
    """The models of one rank, and what happened to them: layers switched, in order, and outcomes."""

    def __init__(self, scarce: bool = False, rule: Dispatch = "weighted") -> None:
        """scarce: there is only just enough memory, so that layers take several hops."""
        self.outcomes: list[Outcome] = []
        self.switched: list[tuple[str, list[int]]] = []
        self.plans: dict[str, Plan] = {}
        self.models: dict[str, Model] = {}
        least = Model(linear_placement(1, EXPERTS, TOPOLOGY.num_slots).phy2log, TOPOLOGY.slots_per_rank).least_staging()
        settings = {"forecast_windows": 1, "migration": {"staging_bytes": least} if scarce else {}}
        rebalancer = Rebalancer(parse_config(settings, "test"), self.outcomes.append)
        data, votes = groups()
        self.cycle = Cycle(rebalancer, dist.new_group())
        for key, layers in LAYERS.items():
            placed = linear_placement(layers, EXPERTS, TOPOLOGY.num_slots)
            model = self.models[key] = Model(placed.phy2log, TOPOLOGY.slots_per_rank)
            entry = ModelEntry(key, TOPOLOGY, "balanced", rule, EXPERTS, 1, list(range(layers)))
            rebalancer.add(key, entry, planning_rank=dist.get_rank() == 0)
            rows = [expert_rows(tensors, TOPOLOGY.slots_per_rank) for tensors in model.tensors]
            plan, switch = plan_of(placed, TOPOLOGY, rule), lambda *args, key=key: self.switch(key, *args)
            self.cycle.add(key, rows, plan, data=data, votes=votes, switch=switch)
        dist.barrier()  # compiling takes one rank longer than votes may

    def switch(self, key: str, layers: list[int], plan: Plan) -> None:
        self.switched.append((key, layers))
        self.plans[key] = plan
        self.models[key].phy2log[layers] = plan.placement.phy2log[layers]

    def check(self) -> None:
        for model in self.models.values():
            model.check()


def loads(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {key: random.lognormal(0, 1.5, (layers, EXPERTS)) for key, layers in LAYERS.items()}


def rebalance(stepwise: bool) -> list[Any]:
    group = Group()
    for seed in range(5):
        if stepwise:
            group.cycle.begin(loads(seed))
            while group.cycle.step():
                time.sleep(0.005)  # where a model would run
                group.check()
        else:
            group.cycle.run(loads(seed))
        group.check()
        for key, model in group.models.items():
            np.testing.assert_array_equal(model.phy2log, group.plans[key].placement.phy2log)
        keys = [key for key, _ in group.switched]
        assert keys == sorted(keys, reverse=True)  # the target first
        assert sorted(layer for key, layers in group.switched if key == "target" for layer in layers) == [0, 1, 2]
        group.switched.clear()
    assert not group.cycle.step()
    expected = [(key, "accepted") for _ in range(5) for key in LAYERS] if dist.get_rank() == 0 else []
    assert [(outcome.model, outcome.result) for outcome in group.outcomes] == expected
    return [group.plans[key].digest for key in LAYERS]


@pytest.mark.parametrize("stepwise", [True, False])
def test_models_are_rebalanced_one_after_the_other(stepwise: bool) -> None:
    """Every layer is put in force once, on all ranks by the same plan, with its experts in place."""
    found = run_ranks(4, rebalance, stepwise, timeout=300.0)
    assert all(one == found[0] for one in found)


def failing() -> list[str]:
    """The planner of the target fails, then a rank that cannot read its weights."""
    group = Group()
    solve = proposal.plan_for

    def fail(*args: Any, **kwargs: Any) -> Plan:
        proposal.plan_for = solve
        raise RuntimeError("struck")

    proposal.plan_for = fail
    group.cycle.run(loads(0))
    layers = group.cycle._models["target"].shuffler.layers
    if dist.get_rank() == 1:
        group.cycle._models["target"].shuffler.layers = [None] * len(layers)
    group.cycle.begin(loads(1))
    while group.cycle.step():
        time.sleep(0.005)
        group.check()
    group.check()
    group.cycle._models["target"].shuffler.layers = layers
    group.cycle.run(loads(2))
    group.check()
    return [f"{outcome.model} {outcome.result}" for outcome in group.outcomes]


def test_what_fails_is_reported_and_the_next_rebalance_works() -> None:
    """A plan that was refused, and one that was accepted but could not be carried out."""
    found = run_ranks(4, failing, timeout=300.0)
    first = ["target refused", "draft accepted"]
    second = ["target accepted", "target interrupted", "draft accepted"]
    assert found == [[*first, *second, "target accepted", "draft accepted"], [], [], []]


def drawn(what: Planned, statistics: RoutingStatistics, *_: Any) -> Plan:
    """A plan by which nearly every slot moves."""
    rows = linear_placement(len(statistics.load), EXPERTS, what.topology.num_slots).phy2log
    random = np.random.default_rng(int(statistics.load.sum() * 1000))
    return plan_of(Placement(random.permuted(rows, axis=1)), what.topology, what.dispatch)


def on_the_way(rule: Dispatch) -> tuple[int, list[str]]:
    """Layers take several hops; the first rebalance succeeds, in the next a row is damaged once a layer has hops
    before it. -> how many were on their way then, and outcomes.
    """
    proposal.plan_for = drawn
    group, hops = Group(scarce=True, rule=rule), 0
    solve, solved, passing = rules.nearest_table, [], 0

    def solving(*args: Any) -> Any:
        solved.append(threading.current_thread())
        return solve(*args)

    rules.nearest_table = solving
    cycle, target = group.cycle, group.models["target"]

    def switch(key: str, layers: list[int], plan: Plan) -> None:
        nonlocal hops, passing
        Group.switch(group, key, layers, plan)
        final = cycle._models[key].plan
        if plan is not final:
            hops, passing = hops + 1, passing + len(layers)
            rules.nearest_table = solve
            even = plan_of(plan.placement, TOPOLOGY, rule)
            rules.nearest_table = solving
            np.testing.assert_array_equal(plan.replica_weights[layers], even.replica_weights[layers])
            assert all((plan.placement.phy2log[layers] != final.placement.phy2log[layers]).any(axis=1))

    group.switch = switch
    cycle.run(loads(0))
    group.check()
    assert cycle.settled("target")
    np.testing.assert_array_equal(target.phy2log, cycle._models["target"].plan.placement.phy2log)

    seal = transfer.seal

    def damaged(rows: Any, *args: Any) -> None:
        seal(rows, *args)
        if hops > before:
            rows[0, 0] ^= 1

    before, transfer.seal = hops, damaged
    cycle.begin(loads(1))
    while cycle.step():
        time.sleep(0.005)
        group.check()
    transfer.seal = seal
    placed = cycle._models["target"].placed
    assert not cycle.settled("target")
    np.testing.assert_array_equal(placed, target.phy2log)
    planned = cycle._models["target"].plan.placement.phy2log
    assert (placed != planned).any()
    struck = hops - before
    cycle.run(loads(1))  # goes on from there
    group.check()
    assert cycle.settled("target")
    assert solved.count(threading.main_thread()) == (passing if rule == "nearest" else 0)
    return struck, [f"{outcome.model} {outcome.result}" for outcome in group.outcomes]


@pytest.mark.parametrize("rule", ["weighted", "nearest"])
def test_layers_on_their_way_serve(rule: Dispatch) -> None:
    """Between two hops a layer is used evenly, by maps that fit its weights, also when the rebalance ends there; the
    engine's thread solves these layers and no other.
    """
    found = run_ranks(4, on_the_way, rule)
    assert min(hops for hops, _ in found) >= 1
    done, struck = (
        [f"{key} {result}" for key in LAYERS for result in results]
        for results in (["accepted"], ["accepted", "interrupted"])
    )
    assert found[0][1] == [*done, *struck, *done]


def losing() -> list[str]:
    """One rank cannot tell whether it is in step with the others; two rebalances follow, one in each way."""
    group = Group()
    decide = group.cycle.rebalancer.decide

    def lost(key: str, *args: Any) -> Plan:
        plan = decide(key, *args)
        if key == "target" and dist.get_rank() == 1:
            raise RuntimeError("struck")
        return plan

    group.cycle.rebalancer.decide = lost
    group.cycle.begin(loads(0))
    while group.cycle.step():
        time.sleep(0.005)
    group.cycle.run(loads(1))
    group.cycle.begin(loads(2))
    while group.cycle.step():
        time.sleep(0.005)
    group.check()
    return [f"{outcome.model} {outcome.result}" for outcome in group.outcomes]


def test_a_lost_rank_is_told_once() -> None:
    """A model that cannot be moved any more is planned no more; the others are rebalanced as before."""
    found = run_ranks(4, losing, timeout=300.0)
    assert found == [["target accepted", "target interrupted", *["draft accepted"] * 3], [], [], []]
