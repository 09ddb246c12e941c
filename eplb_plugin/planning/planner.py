"""One call of `plan()`: every layer from scratch, or from the old placement within the bounds on moves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ..dispatch.rules import replica_weights
from ..errors import mismatch
from ..jit import Array
from ..placement import Placement
from ..plan_types import WEIGHED, Dispatch, Plan, PlanOptions, Policy, placement_of
from ..statistics import RoutingStatistics
from ..topology import Topology
from . import deepseek
from .balanced.plans import plan_evenly
from .effort import SEARCHES
from .even_steps import even_steps
from .layer.plans import LayerPlanner, join_layers
from .layer.solve import as_used
from .moves.budget import Allowed
from .moves.phases import above_zero, parts_above_zero
from .moves.relabel import keep_slots
from .price import skip_unpaid
from .replicas.at_home import is_at_home
from .rules.base import Layer, Rule, Use
from .rules.cover import CoverRule
from .rules.fixed import FixedRule
from .rules.weighted import WeightedRule
from .sample import MAX_ROWS, knows_tokens, layer_tokens, no_tokens
from .side_by_side import solve_each
from .traffic.fixed_rules import Cluster

logger = logging.getLogger("eplb_plugin")
RULES: dict[Dispatch, Callable[..., Rule]] = {
    "hash": FixedRule, "nearest": FixedRule, "weighted": WeightedRule, "cover": CoverRule,
}  # fmt: skip


def plan_of(placement: Placement, topology: Topology, dispatch: Dispatch, layers: Sequence[int] | None = None) -> Plan:
    """A placement that exists already, and how the rule uses it. layers: those that will be asked for."""
    found = placement.num_slots
    if found != topology.num_slots:
        expected = f"{topology.num_slots} on {topology.num_ranks} ranks"
        raise mismatch("placement slots", found=found, expected=expected, fix="pass the topology it was made for")
    return Plan(placement, topology, dispatch, replica_weights(placement, topology, dispatch, layers), 0.0)


@dataclass(frozen=True)
class Planner:
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
    def is_weighed(self) -> bool:
        return self.dispatch in WEIGHED

    @property
    def by_layer(self) -> LayerPlanner:
        return LayerPlanner(self.options, self.keeps_locality, self.dispatch in ("nearest", "cover"), self.num_groups)

    def plan_from(self, previous: Plan | Placement | None) -> Plan:
        """Whatever a move costs."""
        if self.policy == "deepseek":
            phy2log = self.solve_as_vanilla(None if previous is None else placement_of(previous).phy2log)
            return replace(self.use(phy2log), resolved_layers=len(phy2log))
        if not self.keeps_locality and self.dispatch != "nearest":
            return plan_evenly(self, previous)
        if previous is None:
            made, resolved = self._on_all_tokens(self._solve(), SEARCHES[self.options.effort].rows), len(self.load)
        else:
            repaired, resolved = self._repair(previous)
            made = self._on_all_tokens(repaired, SEARCHES[self.options.effort].repair_rows)
        return replace(self.plan_of_layers(made), resolved_layers=resolved)

    def plan_if_it_pays(self, previous: Plan | Placement) -> Plan:
        """Where the usual move does not pay, a repair alone may, if it was not one already."""
        candidates = [partial(self.plan_from, previous)]
        if self.policy != "deepseek" and not self.options.is_bounded:
            repair_only = replace(self.options, max_moved_slots=self.topology.num_slots)
            candidates.append(partial(replace(self, options=repair_only).plan_from, previous))
        if self.is_weighed:
            kept = self.plan_of_layers(self.weigh_all(previous))
        else:
            kept = self.use(placement_of(previous).phy2log)
        return skip_unpaid(kept, candidates, self.statistics, self.options)

    def keep(self, previous: Plan | Placement) -> Plan:
        """The previous placement, used as before where this rule used it on this topology."""
        if isinstance(previous, Plan) and (previous.dispatch, previous.topology) == (self.dispatch, self.topology):
            return previous
        return self.use(placement_of(previous).phy2log)

    def arrange(self, made: Plan, previous: Placement | None) -> Plan:
        """The plan with replicas arranged for `exact`, within what may still move; a layer that does not move stays."""
        if self.statistics.steps is None:
            logger.info("no loads of single steps: replicas are not arranged for exact")
            return made
        phy2log = even_steps(self.statistics.steps, made.placement.phy2log, previous, self.topology, self.options)
        if np.array_equal(phy2log, made.placement.phy2log):
            return made
        used = self.use(phy2log)
        return replace(used, resolved_layers=made.resolved_layers, skipped_layers=made.skipped_layers)

    def use(self, phy2log: NDArray[np.int32]) -> Plan:
        """phy2log: [L, P] as it is, with the best use that the rule can make of it."""
        placement = Placement(phy2log, self.statistics.layer_ids)
        if self.is_weighed:
            return self.plan_of_layers(self.weigh_all(placement))
        return plan_of(placement, self.topology, self.dispatch)

    def solve_as_vanilla(self, previous: NDArray[np.int32] | None) -> NDArray[np.int32]:
        topology = self.topology
        maps = deepseek.solve(self.load, topology.num_slots, self.num_groups, topology.num_nodes, topology.num_ranks)
        phy2log = maps[0].astype(np.int32)
        if previous is None:
            return phy2log
        pairs = zip(phy2log, previous, strict=True)
        return np.stack([keep_slots(new, old, topology.slots_per_rank) for new, old in pairs])

    def is_foreseen(self, layer: Layer) -> bool:
        """Whether its planned load is what ranks will get: where `cover` sends tokens depends on what they select
        together, unless experts are at home.
        """
        if self.dispatch != "cover" or self.topology.num_nodes == 1 or knows_tokens(self.statistics):
            return True
        return is_at_home(layer.phy2log, self.cluster, self.statistics.num_experts)

    def _solve(self) -> list[Layer]:
        by_layer = self.by_layer

        def solve(layer: int) -> Layer:
            rule, pairs = self.rule(layer)
            return by_layer.even_out_parts(rule, by_layer.solve(rule, pairs), None)

        return solve_each(solve, range(len(self.load)))

    def _repair(self, previous: Plan | Placement) -> tuple[list[Layer], int]:
        """Few moves, as far as that is good enough -> the layers, and how many of them were solved afresh."""
        options, by_layer, count = self.options, self.by_layer, len(self.load)
        rules = [self.rule(layer, SEARCHES[options.effort].repair_rows)[0] for layer in range(count)]
        made = solve_each(lambda layer: self._weigh(layer, rules[layer], previous), range(count))
        fresh = np.zeros(count, np.bool_)
        experts = self.statistics.num_experts
        allowed = Allowed(options.max_moved_slots, options.max_moved_slots_total, self.topology, experts)

        def mend(turn: tuple[int, int]) -> None:
            layer, budget = turn
            old = made[layer].phy2log
            repaired = by_layer.repair(rules[layer], made[layer], budget)
            if not options.is_bounded and (self.keeps_locality or repaired.peak > by_layer.good_enough):
                repaired, fresh[layer] = by_layer.or_afresh(*self.rule(layer), repaired, old)
            made[layer] = by_layer.even_out_parts(rules[layer], repaired, old, budget)
            allowed.spend(made[layer].phy2log, old)

        turns = allowed.in_turn(np.array([old.peak - 1.0 for old in made]))
        if options.max_moved_slots_total is None:
            solve_each(mend, list(turns))
        else:  # what a layer may move depends on what those before it have moved
            for turn in turns:
                mend(turn)
        return made, int(fresh.sum())

    def _on_all_tokens(self, layers: list[Layer], rows: int) -> list[Layer]:
        """Weights of `cover` that were fitted to `rows` tokens, fitted to all: few flatter."""
        if self.dispatch != "cover" or self.topology.num_nodes == 1 or rows >= MAX_ROWS:
            return layers

        def refit(layer: int) -> Layer:
            rule, one = self.rule(layer, MAX_ROWS)[0], layers[layer]
            return as_used(rule, one.phy2log, rule.to_nodes(one.phy2log, one.use))

        return solve_each(refit, range(len(layers)))

    def rule(self, layer: int, most_rows: int | None = None) -> tuple[Rule, Array]:
        """-> the rule's steps for a layer, on so many of its tokens, and co-activation [E, E]."""
        statistics, search = self.statistics, SEARCHES[self.options.effort]
        tokens, pairs = no_tokens(), np.zeros((1, 1))
        if self.topology.num_nodes > 1 and knows_tokens(statistics) and (self.keeps_locality or self.is_weighed):
            rows = most_rows or search.rows
            tokens, pairs = layer_tokens(statistics, layer, self.topology, self.dispatch, rows)
        load, parts, topology = above_zero(statistics.load[layer]), parts_above_zero(statistics, layer), self.topology
        ingress = self.options.ingress_tolerance
        return RULES[self.dispatch](load, parts, self.cluster, tokens, topology.node_of_slot, ingress, search), pairs

    def weigh_all(self, start: Plan | Placement) -> list[Layer]:
        """The placement as it is, its weights solved from those that it had, if any for this rule and topology."""
        return solve_each(lambda layer: self._weigh(layer, self.rule(layer, MAX_ROWS)[0], start), range(len(self.load)))

    def _weigh(self, layer: int, rule: Rule, start: Plan | Placement) -> Layer:
        phy2log = placement_of(start).phy2log[layer]
        if isinstance(start, Placement) or start.topology != self.topology:
            return as_used(rule, phy2log)
        known = {"weighted": start.source_weights, "cover": start.cover_weights}.get(self.dispatch)
        if known is None:
            return as_used(rule, phy2log)
        by_source = known[:, layer] if self.dispatch == "weighted" else np.empty((0, len(phy2log)))
        weights = known[layer] if self.dispatch == "cover" else np.empty(0, np.int32)
        return as_used(rule, phy2log, rule.to_nodes(phy2log, Use(start.replica_weights[layer], by_source, weights)))

    def plan_of_layers(self, layers: list[Layer]) -> Plan:
        return join_layers(layers, self.statistics.layer_ids, self.topology, self.dispatch)
