"""What `plan()` refuses before it computes anything."""

from __future__ import annotations

from typing import get_args

import numpy as np

from ..errors import mismatch
from ..limits import MOST_NODES, MOST_RANKS
from ..placement import Placement
from ..plan_types import WEIGHED, Dispatch, PlanOptions, Policy
from ..statistics import RoutingStatistics
from ..topology import Topology
from .price import refuse_unknown_gain
from .sample import knows_tokens

POLICIES: tuple[str, ...] = get_args(Policy)


def checked_policy(policy: str) -> Policy:
    """The policy itself, or PluginError if it is unknown."""
    if policy not in POLICIES:
        raise mismatch("policy", found=repr(policy), expected=f"one of {', '.join(POLICIES)}", fix="name a known one")
    return policy  # type: ignore[return-value]


def runs_on(rule: str, nodes: int) -> bool:
    """Whether a dispatch rule can run on so many nodes: those with weights keep a set of nodes in one number."""
    return rule not in WEIGHED or nodes <= MOST_NODES


def check_input(
    statistics: RoutingStatistics,
    topology: Topology,
    policy: str,
    previous: Placement | None,
    dispatch: Dispatch,
    num_groups: int,
    options: PlanOptions,
) -> None:
    """Raises PluginError if what `plan()` got does not fit together."""
    experts, slots = statistics.num_experts, topology.num_slots
    checked_policy(policy)
    if slots < experts:
        expected = f"at least {experts}, one per expert"
        raise mismatch("topology.num_slots", found=slots, expected=expected, fix="raise slots_per_rank")
    if topology.num_ranks > MOST_RANKS:
        expected = f"at most {MOST_RANKS}"
        fix = "plan for each EP group by itself"
        raise mismatch("topology.num_ranks", found=topology.num_ranks, expected=expected, fix=fix)
    if num_groups < 1 or experts % num_groups:
        expected = f"a divisor of {experts} experts"
        raise mismatch("num_groups", found=num_groups, expected=expected, fix="pass the model's expert groups, or 1")
    if not runs_on(dispatch, topology.num_nodes):
        expected = f"at most {MOST_NODES} for dispatch {dispatch}"
        raise mismatch("topology.num_nodes", found=topology.num_nodes, expected=expected, fix="use dispatch nearest")
    if policy == "affinity" and topology.num_nodes > 1 and not knows_tokens(statistics):
        raise mismatch(
            "policy affinity", found="load only", expected="co-activation or a token sample",
            fix="record one, or plan with policy balanced",
        )  # fmt: skip
    if dispatch == "cover" and topology.num_nodes > 1 and not knows_tokens(statistics):
        kept = previous is not None and options.is_bounded
        if policy == "deepseek" or kept:
            raise mismatch(
                "dispatch cover", found=f"load only, and {'a bound on moves' if kept else 'policy deepseek'}",
                expected="co-activation or a token sample: how even ranks get depends on what tokens select together",
                fix="record one, or plan with policy balanced without a bound, or for dispatch weighted",
            )  # fmt: skip
    refuse_unknown_gain(statistics, options)
    if previous is None:
        return
    found = (previous.num_layers, previous.num_experts, previous.num_slots)
    expected_shape = (statistics.num_layers, experts, slots)
    if found != expected_shape or not np.array_equal(previous.layer_ids, statistics.layer_ids):
        raise mismatch(
            "previous placement", found=f"layers, experts, slots {found}",
            expected=f"{expected_shape} with the statistics' layer_ids", fix="pass this model's placement, or none",
        )  # fmt: skip
    bounds = ("max_moved_slots", "max_moved_slots_total")
    if policy == "deepseek" and any(getattr(options, name) is not None for name in bounds):
        raise mismatch(
            " or ".join(bounds), found="policy deepseek", expected="balanced or affinity",
            fix="drop the bound: this policy always solves afresh",
        )  # fmt: skip
