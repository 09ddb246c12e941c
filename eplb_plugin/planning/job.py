"""One call of `plan()`: every layer from scratch, or from the old placement within the bounds on moves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ..dispatch.rules import replica_weights
from ..errors import mismatch
from ..jit import Array
from ..placement import Placement
from ..plan_types import WEIGHED, Dispatch, Plan, PlanOptions, Policy
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import deepseek
from .affinity import solve_affinity
from .budget import Allowed, count_moved, share_out
from .crossings import Cluster
from .even_layers import even_layers
from .even_steps import even_steps
from .evenly import balance, leveled, most_even, relieve, solve_evenly
from .incremental import expected_crossings, repair_layer
from .packing import solve_balanced
from .parts import LEAST, REAL_LEAST, even_placed, parts_of
from .price import skip_unpaid
from .ranks import count_held
from .relabel import keep_slots, relabel, relabel_layers
from .repair import NO_LIMIT
from .search import SEARCHES, Search
from .tokens import Tokens, layer_tokens, no_tokens
from .weighing import Weigher

logger = logging.getLogger("eplb_plugin")
NODE_SHARE = 0.25  # of the balance tolerance that nodes may use up, before their ranks are packed
WORTH_BALANCE = 0.02  # a full solve must be better balanced by this much, or …
WORTH_CROSSINGS = 0.05  # … send this share fewer copies to other nodes, to be worth moving nearly everything


def plan_of(placement: Placement, topology: Topology, dispatch: Dispatch, layers: Sequence[int] | None = None) -> Plan:
    """A placement that exists already, and how the rule uses it. layers: those that will be asked for."""
    found = placement.num_slots
    if found != topology.num_slots:
        expected = f"{topology.num_slots} on {topology.num_ranks} ranks"
        raise mismatch("placement slots", found=found, expected=expected, fix="pass the topology it was made for")
    return Plan(placement, topology, dispatch, replica_weights(placement, topology, dispatch, layers), 0.0)


def placement_of(previous: Plan | Placement) -> Placement:
    return previous.placement if isinstance(previous, Plan) else previous


def _phy2log(previous: Plan | Placement | None) -> NDArray[np.int32] | None:
    return None if previous is None else placement_of(previous).phy2log


@dataclass(frozen=True)
class Job:
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
    def _search(self) -> Search:
        return SEARCHES[self.options.effort]

    @property
    def keeps_locality(self) -> bool:
        return self.policy == "affinity" and self.topology.num_nodes > 1

    @property
    def shares_evenly(self) -> bool:
        """Whether neither crossings nor a copy's load depend on where its expert's copies lie."""
        return not self.keeps_locality and self.dispatch == "hash"

    def made(self, previous: Plan | Placement | None) -> Plan:
        if self.dispatch in WEIGHED:
            return self._weighed(previous)
        phy2log, resolved = self._placed(_phy2log(previous))
        return replace(self.used(phy2log), resolved_layers=resolved)

    def priced(self, previous: Plan | Placement) -> Plan:
        """Where the usual move does not pay, a repair alone may, if it was not one already."""
        candidates = [partial(self.made, previous)]
        if self.policy != "deepseek" and not self.options.is_bounded:
            repair_only = replace(self.options, max_moved_slots=self.topology.num_slots)
            candidates.append(partial(replace(self, options=repair_only).made, previous))
        kept = self._weigher.as_plan(self._weigher.weigh(previous)) if self.dispatch in WEIGHED else None
        kept = self.used(placement_of(previous).phy2log) if kept is None else kept
        return skip_unpaid(kept, candidates, self.statistics, self.options)

    def as_it_is(self, previous: Plan | Placement) -> Plan:
        """The previous placement, used as before where this rule used it on this topology."""
        if isinstance(previous, Plan) and (previous.dispatch, previous.topology) == (self.dispatch, self.topology):
            return previous
        return self.used(placement_of(previous).phy2log)

    def arranged(self, made: Plan, previous: Placement | None) -> Plan:
        """The plan with replicas arranged for `exact`, within what may still move; a layer that does not move stays."""
        if self.statistics.steps is None:
            logger.info("no loads of single steps: replicas are not arranged for exact")
            return made
        phy2log = even_steps(self.statistics.steps, made.placement.phy2log, previous, self.topology, self.options)
        if np.array_equal(phy2log, made.placement.phy2log):
            return made
        used = self.used(phy2log)
        return replace(used, resolved_layers=made.resolved_layers, skipped_layers=made.skipped_layers)

    def used(self, phy2log: NDArray[np.int32]) -> Plan:
        """phy2log: [L, P] as it is, with the best use that the rule can make of it."""
        placement = Placement(phy2log, self.statistics.layer_ids)
        if self.dispatch in WEIGHED:
            return self._weigher.as_plan(self._weigher.weigh(placement))
        return plan_of(placement, self.topology, self.dispatch)

    @property
    def _weigher(self) -> Weigher:
        return Weigher(self.statistics, self.topology, self.dispatch, self.num_groups, self.options)

    @property
    def _allowed(self) -> Allowed:
        options = self.options
        return Allowed(
            options.max_moved_slots, options.max_moved_slots_total, self.topology, self.statistics.num_experts
        )

    def _weighed(self, previous: Plan | Placement | None) -> Plan:
        weigher = self._weigher
        if self.keeps_locality:
            if previous is None:
                layers, resolved = weigher.solve(), self.statistics.num_layers
            else:
                layers, resolved = weigher.repair(previous, self._allowed)
            return replace(weigher.as_plan(layers), resolved_layers=resolved)
        phy2log, resolved = self._placed(_phy2log(previous))
        layers = weigher.weigh(Placement(phy2log, self.statistics.layer_ids))
        if self.policy != "deepseek":
            if self.dispatch == "cover" and not (previous is not None and self.options.is_bounded):
                layers = weigher.or_at_home(_phy2log(previous), layers)
            if previous is not None:
                layers = weigher.prefer(previous, layers)
        return replace(weigher.as_plan(layers), resolved_layers=resolved)

    def _placed(self, previous: NDArray[np.int32] | None) -> tuple[NDArray[np.int32], int]:
        """-> phy2log [L, P], and the number of layers that were solved afresh."""
        if self.policy == "deepseek":
            return self.vanilla(previous), self.statistics.num_layers
        if previous is None:
            solved = self.solve()
            return self._even_out_parts(solved, solved, LEAST), self.statistics.num_layers
        repaired, resolved = self.repair(previous)
        return self._even_out_parts(repaired, previous, REAL_LEAST), resolved

    def _even_out_parts(
        self, phy2log: NDArray[np.int32], previous: NDArray[np.int32], least: float
    ) -> NDArray[np.int32]:
        """Every part of the traffic evened out, too, within the bounds on moves. previous: where moves began to count;
        least: crossings per token that a swap must be worth for each.
        """
        if self.statistics.parts is None:
            return phy2log
        options, made, experts = self.options, phy2log.copy(), self.statistics.num_experts
        moved = count_moved(phy2log, previous, self.topology.num_ranks, experts)
        cap = NO_LIMIT if options.max_moved_slots is None else options.max_moved_slots
        left = NO_LIMIT if options.max_moved_slots_total is None else options.max_moved_slots_total - int(moved.sum())
        for layer, load in enumerate(self.load):
            parts = parts_of(self.statistics, layer)
            if len(parts) < 2:
                continue
            before = count_held(previous[layer], self.cluster, experts)
            tokens, _ = self._tokens(layer, self._search.repair_rows)
            budget = min(cap, int(moved[layer]) + left)
            even_placed(
                load, parts, made[layer], before, self.cluster, tokens, budget, options.ingress_tolerance, least
            )
            made[layer] = keep_slots(made[layer], previous[layer], self.topology.slots_per_rank)
            now = count_moved(made[layer : layer + 1], previous[layer : layer + 1], self.topology.num_ranks, experts)
            left -= int(now[0] - moved[layer])
        return made

    def vanilla(self, previous: NDArray[np.int32] | None) -> NDArray[np.int32]:
        topology = self.topology
        maps = deepseek.solve(self.load, topology.num_slots, self.num_groups, topology.num_nodes, topology.num_ranks)
        phy2log = maps[0].astype(np.int32)
        if previous is None:
            return phy2log
        pairs = zip(phy2log, previous, strict=True)
        return np.stack([keep_slots(new, old, topology.slots_per_rank) for new, old in pairs])

    def solve(self) -> NDArray[np.int32]:
        if self.shares_evenly:  # all layers at once: a call from Python costs as much as a layer
            return solve_balanced(self.load, self.topology.num_slots, self.topology.num_ranks)
        rows = self._search.rows
        return np.stack([self._solve_layer(load, *self._tokens(layer, rows)) for layer, load in enumerate(self.load)])

    def repair(self, previous: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
        """-> phy2log, and the number of layers that were solved afresh."""
        if self.shares_evenly:
            return self._even_out_within_bounds(previous)
        pairs = zip(self.load, previous, strict=True)
        found = np.array([self._balance(load, old) for load, old in pairs])
        phy2log, resolved, allowed = previous.copy(), 0, self._allowed
        for layer, budget in allowed.in_turn(1.0 / found - 1.0):
            phy2log[layer], fresh = self._repair_layer(layer, previous[layer], budget)
            resolved += fresh
            allowed.spend(phy2log[layer], previous[layer])
        return phy2log, resolved

    def _even_out_within_bounds(self, previous: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
        cap, total = self.options.max_moved_slots, self.options.max_moved_slots_total
        made, resolved = self._even_out(previous, np.full(len(previous), NO_LIMIT if cap is None else cap, np.int64))
        if total is not None:
            wanted = count_moved(made, previous, self.topology.num_ranks, self.statistics.num_experts)
            if wanted.sum() > total:  # again, every layer with its share: that is quick here
                made, resolved = self._even_out(previous, share_out(wanted, total))
        return made, resolved

    def _even_out(self, previous: NDArray[np.int32], budgets: Array) -> tuple[NDArray[np.int32], int]:
        slots, ratio = self.topology.slots_per_rank, 1.0 + self.options.balance_tolerance
        repaired, is_poor = even_layers(self.load, previous, self.cluster.node_of_rank, slots, ratio, budgets)
        if self.options.is_bounded:
            return repaired, 0
        poor = np.flatnonzero(is_poor)  # even if there are none: whatever may run is compiled when a server starts
        fresh = solve_balanced(self.load[poor], self.topology.num_slots, self.topology.num_ranks)
        relabel_layers(repaired, poor, fresh, previous, self.cluster, self.statistics.num_experts)
        return repaired, len(poor)

    def _tokens(self, layer: int, most_rows: int) -> tuple[Tokens, Array]:
        if self.keeps_locality:
            return layer_tokens(self.statistics, layer, self.topology, self.dispatch, most_rows)
        return no_tokens(), np.zeros((1, 1))

    def _solve_layer(self, load: Array, tokens: Tokens, pairs: Array) -> Array:
        tolerance, ingress = self.options.balance_tolerance, self.options.ingress_tolerance
        if not self.keeps_locality:
            return solve_evenly(load, self.topology, self.cluster, 1.0 + tolerance)
        slack = NODE_SHARE * tolerance
        phy2log = solve_affinity(load, pairs, self.cluster, tokens, self.num_groups, slack, ingress, self._search)
        relieve(load, phy2log, self.cluster, tokens, 1.0 + tolerance)
        if self._is_balanced(load, phy2log):
            return phy2log
        even = solve_evenly(load, self.topology, self.cluster, 1.0 + tolerance)
        return even if self._balance(load, even) > self._balance(load, phy2log) + tolerance else phy2log

    def _repair_layer(self, layer: int, old: Array, budget: int) -> tuple[Array, bool]:
        """-> phy2log of a layer, and whether it was solved afresh."""
        peak_ratio, load, ingress = (
            1.0 + self.options.balance_tolerance,
            self.load[layer],
            self.options.ingress_tolerance,
        )
        tokens, _ = self._tokens(layer, self._search.repair_rows)
        repaired = repair_layer(load, old, self.cluster, tokens, peak_ratio, budget, ingress)
        if self.options.is_bounded or (not self.keeps_locality and self._is_balanced(load, repaired)):
            return repaired, False
        tokens, pairs = self._tokens(layer, self._search.rows)
        fresh = self._solve_layer(load, tokens, pairs)
        # labelled before it is known to pay: whatever may run is compiled when a server starts
        relabelled = keep_slots(relabel(fresh, old, self.cluster, len(load)), old, self.cluster.slots_per_rank)
        if not self._is_worth_it(load, tokens, repaired, fresh):
            return repaired, False
        # under `nearest` it depends on a node's number whom it serves, so that new labels may need a repair
        mended = repair_layer(load, relabelled, self.cluster, tokens, peak_ratio, budget, ingress)
        if self.cluster.nearest:
            found = [repaired, leveled(load, relabelled, self.topology), mended]
            mended = most_even(load, found, self.topology)
        return keep_slots(mended, old, self.cluster.slots_per_rank), mended is not repaired

    def _balance(self, load: Array, phy2log: Array) -> float:
        return balance(load, phy2log, self.topology, self.cluster)

    def _is_balanced(self, load: Array, phy2log: Array) -> bool:
        return self._balance(load, phy2log) * (1.0 + self.options.balance_tolerance) >= 1.0

    def _is_worth_it(self, load: Array, tokens: Tokens, repaired: Array, fresh: Array) -> bool:
        """Whether a full solve gains so much that moving nearly everything is justified."""
        gain = self._balance(load, fresh) - self._balance(load, repaired)
        if gain >= WORTH_BALANCE and not self._is_balanced(load, repaired):
            return True
        if not self.keeps_locality or gain <= -WORTH_BALANCE:
            return False
        crossings = [expected_crossings(slots, self.cluster, tokens, len(load)) for slots in (repaired, fresh)]
        return crossings[1] < (1.0 - WORTH_CROSSINGS) * crossings[0]
