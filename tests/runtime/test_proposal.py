"""What the planning rank proposes, and what it asks of a forecast for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Dispatch, Policy
from eplb_plugin.planning.plan import plan
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.resplit import resplit
from eplb_plugin.planning.step_balance import loads_by_quotas, loads_by_shares, step_balancedness
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime import proposal
from eplb_plugin.runtime.agreement import KEEP
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.plan_codec import accept, encode
from eplb_plugin.runtime.warm_up import Planned
from eplb_plugin.runtime.window_history import WindowHistory
from eplb_plugin.settings.config import PluginConfig, parse_config

LAYERS, EXPERTS, TOP_K = 2, 8, 2
PRICED = parse_config({"price": {"link_gbps": 100.0, "token_bytes": 4096.0}}, "")


def window(seed: int) -> RoutingStatistics:
    rank = np.random.default_rng(seed).random((LAYERS, 300, EXPERTS)) ** np.arange(1, EXPERTS + 1)
    return RoutingStatistics.from_topk(np.argsort(rank, axis=2)[:, :, :TOP_K], EXPERTS)


def entry(policy: Policy, dispatch: Dispatch, nodes: int) -> ModelEntry:
    recorder = Recorder(LAYERS, EXPERTS, TOP_K, 16, 64, torch.device("cpu"))
    topology = Topology(nodes, 4 // nodes, 3)
    made = ModelEntry("m", topology, policy, dispatch, EXPERTS, 1, list(range(LAYERS)), recorder, expert_bytes=64)
    made.history = WindowHistory(3)
    for seed in range(3):
        made.history.add(window(seed))
    return made


@pytest.mark.parametrize(
    ("policy", "dispatch", "nodes", "config", "reads"),
    [
        ("balanced", "hash", 2, PluginConfig(), False),
        ("balanced", "weighted", 1, PluginConfig(), False),
        ("deepseek", "hash", 2, PluginConfig(), False),
        ("affinity", "hash", 1, PluginConfig(), False),
        ("affinity", "hash", 2, PluginConfig(), True),
        ("balanced", "weighted", 2, PluginConfig(), True),
        ("balanced", "hash", 2, PRICED, True),
    ],
)
def test_only_plans_that_read_co_activation_wait_for_it(
    policy: Policy, dispatch: Dispatch, nodes: int, config: PluginConfig, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the plan is, bit for bit, the one that a whole forecast makes."""
    one = entry(policy, dispatch, nodes)
    in_force = plan_of(linear_placement(LAYERS, EXPERTS, one.topology.num_slots), one.topology, dispatch)
    seen: list[RoutingStatistics] = []

    def plan_for(what: Planned, statistics: RoutingStatistics, previous: Plan, options: PlanOptions) -> Plan:
        seen.append(statistics)
        return solve(what, statistics, previous, options)

    solve = proposal.plan_for
    monkeypatch.setattr(proposal, "plan_for", plan_for)
    outcome, message = proposal.propose(one, in_force, config)
    assert outcome.result == "accepted"
    assert seen[0].sample is not None
    assert (seen[0].coactivation is not None) == reads
    options = proposal.options_for(one, config)
    whole = plan(
        one.history.expected(), one.topology, policy=policy, previous=in_force, dispatch=dispatch, options=options
    )
    assert accept(message, in_force).digest == accept(encode(whole), in_force).digest


def test_without_tokens_all_stays() -> None:
    """An empty window keeps what is in force, proposes the same weights, and says that it was skipped."""
    one = entry("balanced", "hash", 2)
    one.history.add(RoutingStatistics(np.zeros((LAYERS, EXPERTS))))
    in_force = plan_of(linear_placement(LAYERS, EXPERTS, one.topology.num_slots), one.topology, "hash")
    outcome, message = proposal.propose(one, in_force, PluginConfig())
    assert outcome.result == "skipped"
    assert message is KEEP
    outcome, message = proposal.propose_weights(one, in_force, PluginConfig())
    assert outcome.result == "skipped"
    assert message is not None
    assert accept(message, in_force).digest == in_force.digest


@pytest.mark.parametrize("dispatch", ["hash", "weighted"])
def test_what_gains_nothing_is_not_proposed(dispatch: Dispatch) -> None:
    """A second plan from the same windows: no expert moves, and no share gets better by more than a thousandth."""
    one = entry("balanced", dispatch, 2)
    in_force = plan_of(linear_placement(LAYERS, EXPERTS, one.topology.num_slots), one.topology, dispatch)
    found = []
    for _ in range(4):
        outcome, message = proposal.propose(one, in_force, PluginConfig())
        assert outcome.result == "accepted"
        assert outcome.assessment is not None
        found.append((outcome.assessment.moved_slots > 0, message is KEEP))
        in_force = in_force if message is None else accept(message, in_force)
    assert found[0] == (True, False)
    assert found[-1] == (False, True)
    assert in_force.has_weights == (dispatch == "weighted")


def test_better_shares_are_proposed_where_no_expert_may_move() -> None:
    """A gain of shares alone is one."""
    one = entry("balanced", "weighted", 2)
    start = plan_of(linear_placement(LAYERS, EXPERTS, one.topology.num_slots), one.topology, "weighted")
    _, message = proposal.propose(one, start, PluginConfig())
    assert message is not None
    others = RoutingStatistics(np.random.default_rng(0).random((LAYERS, EXPERTS)) ** 4)
    in_force = resplit(accept(message, start), others)
    assert in_force.has_weights
    outcome, message = proposal.propose(one, in_force, parse_config({"budget": {"max_moved_slots_total": 0}}, ""))
    assert outcome.assessment is not None
    assert outcome.assessment.moved_slots == 0
    before, after = outcome.assessment.balancedness
    assert after > before + 0.001
    assert message is not KEEP


def test_single_steps_are_judged_as_they_were_served() -> None:
    """By shares of the tables, and by quotas where the settings ask for `exact`; nothing without recorded steps."""
    one = entry("balanced", "hash", 1)
    in_force = plan_of(linear_placement(LAYERS, EXPERTS, one.topology.num_slots), one.topology, "hash")
    assert proposal.propose(one, in_force, PluginConfig())[0].served.per_step == {}
    steps = np.random.default_rng(0).integers(0, 60, (5, LAYERS, EXPERTS))
    one.history.add(replace(one.history.newest, steps=steps))
    tables = step_balancedness(loads_by_shares(steps, in_force))
    assert proposal.propose(one, in_force, PluginConfig())[0].served.per_step == {"tables": tables}
    exact = step_balancedness(loads_by_quotas(steps, in_force))
    assert exact > tables
    served = proposal.propose(one, in_force, parse_config({"exact": {}}, ""))[0].served
    assert served.per_step == {"tables": tables, "exact": exact}
