"""plan(): the one entry. Checks everything first, then solves every layer, from scratch or from the old placement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..dispatch.rules import checked_rule, replica_weights
from ..errors import mismatch
from ..jit import Array
from ..placement import Placement
from ..plan_types import Dispatch, Plan, PlanOptions, Policy
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import deepseek
from .affinity import solve_affinity
from .budget import count_moved, share_out
from .crossings import Cluster
from .evening import even_balance, even_layers
from .incremental import expected_balance, expected_crossings, repair_layer
from .packing import solve_balanced
from .ranks import count_held
from .relabel import keep_slots, relabel
from .repair import NO_LIMIT, repair
from .tokens import Tokens, layer_tokens, no_tokens

POLICIES: tuple[str, ...] = get_args(Policy)
NODE_SHARE = 0.25  # of the balance tolerance that nodes may use up, before their ranks are packed
ROUNDING = 1e-9
WORTH_BALANCE = 0.02  # a full solve must be better balanced by this much, or …
WORTH_CROSSINGS = 0.05  # … send this share fewer copies to other nodes, to be worth moving nearly everything


def plan(
    statistics: RoutingStatistics,
    topology: Topology,
    *,
    policy: Policy = "affinity",
    previous: Placement | None = None,
    dispatch: Dispatch = "hash",
    num_groups: int = 1,
    options: PlanOptions | None = None,
) -> Plan:
    """A placement for the next window, and the shares its copies will serve under `dispatch`.

    policy: deepseek = the engines' own; balanced = even ranks only; affinity = even ranks and few nodes per token.
    previous: the placement to start from. balanced and affinity then repair it with few moves; only where a full
    solve is clearly better, and the options set no bound on moves, a layer is solved afresh (`resolved_layers`).
    num_groups: the model's expert groups (group-limited routing); contiguous in the expert ids.

    Deterministic. Raises PluginError on input that does not fit together, before computing anything.
    """
    began = time.perf_counter()
    options = PlanOptions() if options is None else options
    _check(statistics, topology, policy, previous, checked_rule(dispatch), num_groups, options)
    job = _Job(statistics, topology, policy, dispatch, num_groups, options)
    resolved = statistics.num_layers
    if policy == "deepseek":
        phy2log = job.vanilla(previous)
    elif previous is None:
        phy2log = job.solve()
    else:
        phy2log, resolved = job.repair(previous.phy2log)
    placement = Placement(phy2log, statistics.layer_ids)
    shares = replica_weights(placement, topology, dispatch)
    return Plan(placement, topology, dispatch, shares, time.perf_counter() - began, resolved)


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

    @property
    def shares_evenly(self) -> bool:
        """Whether neither crossings nor a copy's load depend on where its expert's copies lie."""
        return not self.keeps_locality and self.dispatch == "hash"

    @property
    def is_bounded(self) -> bool:
        return self.options.max_moved_slots is not None or self.options.max_moved_slots_total is not None

    def vanilla(self, previous: Placement | None) -> NDArray[np.int32]:
        topology = self.topology
        maps = deepseek.solve(self.load, topology.num_slots, self.num_groups, topology.num_nodes, topology.num_ranks)
        phy2log = maps[0].astype(np.int32)
        if previous is None:
            return phy2log
        pairs = zip(phy2log, previous.phy2log, strict=True)
        return np.stack([keep_slots(new, old, topology.slots_per_rank) for new, old in pairs])

    def solve(self) -> NDArray[np.int32]:
        if self.shares_evenly:  # all layers at once: a call from Python costs as much as a layer
            return solve_balanced(self.load, self.topology.num_slots, self.topology.num_ranks)
        return np.stack([self._solve_layer(load, *self._tokens(layer)) for layer, load in enumerate(self.load)])

    def repair(self, previous: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
        """-> phy2log, and the number of layers that were solved afresh."""
        cap, total = self.options.max_moved_slots, self.options.max_moved_slots_total
        budgets = np.full(len(previous), NO_LIMIT if cap is None else cap, np.int64)
        repaired, resolved = self._repair_within(previous, budgets)
        if total is not None:
            wanted = count_moved(repaired, previous, self.topology.num_ranks, self.statistics.num_experts)
            if wanted.sum() > total:  # again, every layer with its share
                repaired, resolved = self._repair_within(previous, share_out(wanted, total))
        return repaired, resolved

    def _repair_within(self, previous: NDArray[np.int32], budgets: Array) -> tuple[NDArray[np.int32], int]:
        if self.shares_evenly:
            return self._even_out(previous, budgets)
        layers = [
            self._repair_layer(load, old, int(budget), *self._tokens(layer))
            for layer, (load, old, budget) in enumerate(zip(self.load, previous, budgets, strict=True))
        ]
        return np.stack([slots for slots, _ in layers]), sum(fresh for _, fresh in layers)

    def _even_out(self, previous: NDArray[np.int32], budgets: Array) -> tuple[NDArray[np.int32], int]:
        slots, ratio = self.topology.slots_per_rank, 1.0 + self.options.balance_tolerance
        repaired = even_layers(self.load, previous, self.cluster.node_of_rank, slots, ratio, budgets)
        balance = even_balance(self.load, repaired, slots)
        poor = np.flatnonzero(balance * ratio < 1.0 - ROUNDING)
        if self.is_bounded or not len(poor):
            return repaired, 0
        fresh = solve_balanced(self.load[poor], self.topology.num_slots, self.topology.num_ranks)
        worth = even_balance(self.load[poor], fresh, slots) - balance[poor] >= WORTH_BALANCE
        for layer, slots_afresh in zip(poor[worth], fresh[worth], strict=True):
            repaired[layer] = relabel(slots_afresh, previous[layer], self.cluster, self.statistics.num_experts)
        return repaired, int(worth.sum())

    def _tokens(self, layer: int) -> tuple[Tokens, Array]:
        if self.keeps_locality:
            return layer_tokens(self.statistics, layer, self.topology, self.dispatch)
        return no_tokens(), np.zeros((1, 1))

    def _solve_layer(self, load: Array, tokens: Tokens, pairs: Array) -> Array:
        tolerance = self.options.balance_tolerance
        if self.keeps_locality:
            phy2log = solve_affinity(load, pairs, self.cluster, tokens, self.num_groups, NODE_SHARE * tolerance)
        else:
            phy2log = solve_balanced(load[None], self.topology.num_slots, self.topology.num_ranks)[0]
        if self.keeps_locality or self.cluster.nearest:  # what packing could not see: other nodes, and shares there
            before = count_held(phy2log, self.cluster, len(load))
            repair(load, phy2log, before, self.cluster, tokens, 1.0 + tolerance, NO_LIMIT)
        return phy2log

    def _repair_layer(self, load: Array, old: Array, budget: int, tokens: Tokens, pairs: Array) -> tuple[Array, bool]:
        """-> phy2log of a layer, and whether it was solved afresh."""
        peak_ratio = 1.0 + self.options.balance_tolerance
        repaired = repair_layer(load, old, self.cluster, tokens, peak_ratio, budget)
        if self.is_bounded or (not self.keeps_locality and self._is_balanced(load, repaired)):
            return repaired, False
        fresh = self._solve_layer(load, tokens, pairs)
        if not self._is_worth_it(load, tokens, repaired, fresh):
            return repaired, False
        # under `nearest` it depends on a node's number whom it serves, so that new labels may need a repair
        relabelled = relabel(fresh, old, self.cluster, len(load))
        relabelled = repair_layer(load, relabelled, self.cluster, tokens, peak_ratio, budget)
        return keep_slots(relabelled, old, self.cluster.slots_per_rank), True

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
    bounds = ("max_moved_slots", "max_moved_slots_total")
    if policy == "deepseek" and any(getattr(options, name) is not None for name in bounds):
        raise mismatch(
            " or ".join(bounds), found="policy deepseek", expected="balanced or affinity",
            fix="drop the bound: this policy always solves afresh",
        )  # fmt: skip
