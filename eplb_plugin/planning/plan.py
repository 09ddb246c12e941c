"""plan(): the one entry. Checks everything first, then solves every layer, from scratch or from the old placement."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..dispatch.cover import MOST_NODES
from ..dispatch.rules import checked_rule, replica_weights
from ..errors import mismatch
from ..jit import Array
from ..placement import Placement
from ..plan_types import Dispatch, Plan, PlanOptions, Policy
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import deepseek
from .affinity import solve_affinity
from .crossings import Cluster
from .incremental import expected_balance, expected_crossings, repair_layer
from .packing import solve_balanced
from .ranks import count_held
from .relabel import keep_slots, relabel
from .repair import NO_LIMIT, repair
from .tokens import Tokens, layer_tokens, no_tokens
from .weighing import WEIGHED, Weigher

POLICIES: tuple[str, ...] = get_args(Policy)
NODE_SHARE = 0.25  # of the balance tolerance that nodes may use up, before their ranks are packed
WORTH_BALANCE = 0.02  # a full solve must be better balanced by this much, or …
WORTH_CROSSINGS = 0.05  # … send this share fewer copies to other nodes, to be worth moving nearly everything


def plan(
    statistics: RoutingStatistics,
    topology: Topology,
    *,
    policy: Policy = "affinity",
    previous: Placement | None = None,
    dispatch: Dispatch = "weighted",
    num_groups: int = 1,
    options: PlanOptions | None = None,
) -> Plan:
    """A placement for the next window, and the shares its copies will serve under `dispatch`.

    policy: deepseek = the engines' own; balanced = even ranks only; affinity = even ranks and few nodes per token.
    previous: the placement to start from. balanced and affinity then repair it with few moves; only where a full
    solve is clearly better, and `options.max_moved_slots` sets no bound, a layer is solved afresh.
    num_groups: the model's expert groups (group-limited routing); contiguous in the expert ids.

    Deterministic. Raises PluginError on input that does not fit together, before computing anything.
    """
    began = time.perf_counter()
    options = PlanOptions() if options is None else options
    _check(statistics, topology, policy, previous, checked_rule(dispatch), num_groups, options)
    job = _Job(statistics, topology, policy, dispatch, num_groups, options)
    if dispatch in WEIGHED:
        return replace(job.weighed(previous), seconds=time.perf_counter() - began)
    placement = Placement(job.placed(previous), statistics.layer_ids)
    shares = replica_weights(placement, topology, dispatch)
    return Plan(placement, topology, dispatch, shares, time.perf_counter() - began)


@dataclass(frozen=True)
class _Job:
    """One call's checked input."""

    statistics: RoutingStatistics
    topology: Topology
    policy: Policy
    dispatch: Dispatch
    num_groups: int
    options: PlanOptions

    @cached_property
    def load(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.statistics.load, np.float64)

    @cached_property
    def cluster(self) -> Cluster:
        topology = self.topology
        nearest = self.dispatch == "nearest"
        return Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, nearest)

    @property
    def keeps_locality(self) -> bool:
        return self.policy == "affinity" and self.topology.num_nodes > 1

    def placed(self, previous: Placement | None) -> NDArray[np.int32]:
        if self.policy == "deepseek":
            return self.vanilla(previous)
        return self.solve() if previous is None else self.repair(previous.phy2log)

    def weighed(self, previous: Placement | None) -> Plan:
        weigher = Weigher(self.statistics, self.topology, self.dispatch, self.num_groups, self.options)
        if not self.keeps_locality:
            layers = weigher.weigh(self.placed(previous))
            if previous is not None and self.policy != "deepseek":
                layers = weigher.prefer(previous.phy2log, layers)
        else:
            layers = weigher.solve() if previous is None else weigher.repair(previous.phy2log)
        return weigher.as_plan(layers)

    def vanilla(self, previous: Placement | None) -> NDArray[np.int32]:
        topology = self.topology
        maps = deepseek.solve(self.load, topology.num_slots, self.num_groups, topology.num_nodes, topology.num_ranks)
        phy2log = maps[0].astype(np.int32)
        if previous is None:
            return phy2log
        pairs = zip(phy2log, previous.phy2log, strict=True)
        return np.stack([keep_slots(new, old, topology.slots_per_rank) for new, old in pairs])

    def solve(self) -> NDArray[np.int32]:
        return np.stack([self._solve_layer(load, *self._tokens(layer)) for layer, load in enumerate(self.load)])

    def repair(self, previous: NDArray[np.int32]) -> NDArray[np.int32]:
        pairs = zip(self.load, previous, strict=True)
        layers = [self._repair_layer(load, old, *self._tokens(layer)) for layer, (load, old) in enumerate(pairs)]
        return np.stack(layers)

    def _tokens(self, layer: int) -> tuple[Tokens, Array]:
        if self.keeps_locality:
            return layer_tokens(self.statistics, layer, self.topology, self.dispatch)
        return no_tokens(), np.zeros((1, 1))

    def _solve_layer(self, load: Array, tokens: Tokens, pairs: Array) -> Array:
        tolerance = self.options.balance_tolerance
        if self.keeps_locality:
            phy2log = solve_affinity(load, pairs, self.cluster, tokens, self.num_groups, NODE_SHARE * tolerance)
        else:
            phy2log = solve_balanced(load, self.topology.num_slots, self.topology.num_ranks)
        if self.keeps_locality or self.cluster.nearest:  # what packing could not see: other nodes, and shares there
            before = count_held(phy2log, self.cluster, len(load))
            repair(load, phy2log, before, self.cluster, tokens, 1.0 + tolerance, NO_LIMIT)
        return phy2log

    def _repair_layer(self, load: Array, old: Array, tokens: Tokens, pairs: Array) -> Array:
        cap, peak_ratio = self.options.max_moved_slots, 1.0 + self.options.balance_tolerance
        budget = NO_LIMIT if cap is None else cap
        repaired = repair_layer(load, old, self.cluster, tokens, peak_ratio, budget)
        if cap is not None or (not self.keeps_locality and self._is_balanced(load, repaired)):
            return repaired
        fresh = self._solve_layer(load, tokens, pairs)
        if not self._is_worth_it(load, tokens, repaired, fresh):
            return repaired
        # under `nearest` it depends on a node's number whom it serves, so that new labels may need a repair
        relabelled = relabel(fresh, old, self.cluster, len(load))
        relabelled = repair_layer(load, relabelled, self.cluster, tokens, peak_ratio, budget)
        return keep_slots(relabelled, old, self.cluster.slots_per_rank)

    def _is_balanced(self, load: Array, phy2log: Array) -> bool:
        return expected_balance(load, phy2log, self.cluster) * (1.0 + self.options.balance_tolerance) >= 1.0

    def _is_worth_it(self, load: Array, tokens: Tokens, repaired: Array, fresh: Array) -> bool:
        """Whether a full solve gains so much that moving nearly everything is justified."""
        gain = expected_balance(load, fresh, self.cluster) - expected_balance(load, repaired, self.cluster)
        if gain >= WORTH_BALANCE and not self._is_balanced(load, repaired):
            return True
        if not self.keeps_locality or gain <= -WORTH_BALANCE:
            return False
        crossings = [expected_crossings(slots, self.cluster, tokens, len(load)) for slots in (repaired, fresh)]
        return crossings[1] < (1.0 - WORTH_CROSSINGS) * crossings[0]


def _check(
    statistics: RoutingStatistics,
    topology: Topology,
    policy: str,
    previous: Placement | None,
    dispatch: Dispatch,
    num_groups: int,
    options: PlanOptions,
) -> None:
    experts, slots = statistics.num_experts, topology.num_slots
    if policy not in POLICIES:
        raise mismatch("policy", found=repr(policy), expected=f"one of {', '.join(POLICIES)}", fix="name a known one")
    if slots < experts:
        expected = f"at least {experts}, one per expert"
        raise mismatch("topology.num_slots", found=slots, expected=expected, fix="raise slots_per_rank")
    if num_groups < 1 or experts % num_groups:
        expected = f"a divisor of {experts} experts"
        raise mismatch("num_groups", found=num_groups, expected=expected, fix="pass the model's expert groups, or 1")
    if dispatch in WEIGHED and topology.num_nodes > MOST_NODES:
        expected = f"at most {MOST_NODES} for dispatch {dispatch}"
        raise mismatch("topology.num_nodes", found=topology.num_nodes, expected=expected, fix="use dispatch nearest")
    knows_pairs = statistics.coactivation is not None or statistics.sample is not None
    if policy == "affinity" and topology.num_nodes > 1 and not knows_pairs:
        raise mismatch(
            "policy affinity", found="load only", expected="co-activation or a token sample",
            fix="record one, or plan with policy balanced",
        )  # fmt: skip
    if previous is None:
        return
    found = (previous.num_layers, previous.num_experts, previous.num_slots)
    expected_shape = (statistics.num_layers, experts, slots)
    if found != expected_shape or not np.array_equal(previous.layer_ids, statistics.layer_ids):
        raise mismatch(
            "previous placement", found=f"layers, experts, slots {found}",
            expected=f"{expected_shape} with the statistics' layer_ids", fix="pass this model's placement, or none",
        )  # fmt: skip
    if policy == "deepseek" and options.max_moved_slots is not None:
        raise mismatch(
            "max_moved_slots", found="policy deepseek", expected="balanced or affinity",
            fix="drop the bound: this policy always solves afresh",
        )  # fmt: skip
