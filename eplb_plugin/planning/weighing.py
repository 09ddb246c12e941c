"""Plans for rules whose copies have weights of their own: every layer's placement together with how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import Array
from ..placement import Placement
from ..plan_types import Dispatch, Plan, PlanOptions
from ..statistics import RoutingStatistics
from ..topology import Topology
from .at_home import is_at_home, solve_at_home
from .budget import Allowed
from .cover import CoverRule
from .crossings import Cluster
from .joint import Rule, as_used, even_out_parts, mend, solve_layer
from .joint_types import Layer, Use, reordered
from .more_copies import Bounds, give_copies
from .packing import solve_balanced
from .parts import LEAST, REAL_LEAST, parts_of
from .ranks import count_held
from .relabel import keep_slots, relabel
from .repair import NO_LIMIT
from .search import SEARCHES, Search
from .tokens import MAX_ROWS, knows_tokens, layer_tokens, no_tokens
from .weighted import WeightedRule

LEAST_LOAD = 1e-6  # of the mean expert load: an idle expert still has to be somewhere, and shares divide by loads
EVEN = 1.004  # busiest rank over the mean that from scratch is not improved on
WORTH_BALANCE = 0.02  # what a full solve must gain over a repair …
WORTH_CROSSINGS = 0.1  # … to be worth moving nearly everything


@dataclass(frozen=True)
class Weigher:
    """One call's checked input."""

    statistics: RoutingStatistics
    topology: Topology
    dispatch: Dispatch
    num_groups: int
    options: PlanOptions

    @property
    def _search(self) -> Search:
        return SEARCHES[self.options.effort]

    @cached_property
    def cluster(self) -> Cluster:
        topology = self.topology
        return Cluster(topology.node_of_rank, topology.num_nodes, topology.slots_per_rank, False)

    def weigh(self, start: Plan | Placement) -> list[Layer]:
        """The placement as it is, its weights solved from those that it had, if any for this rule and topology."""
        layers = range(self.statistics.num_layers)
        return [self._weigh(layer, self._rule(layer, MAX_ROWS)[0], start) for layer in layers]

    def prefer(self, previous: Plan | Placement, layers: list[Layer]) -> list[Layer]:
        """The previous placement instead, where new weights alone make it even enough, or no worse."""
        enough = 1.0 + self.options.balance_tolerance
        pairs = zip(self.weigh(previous), layers, strict=True)
        return [old if self._is_foreseen(old) and old.peak <= max(enough, new.peak) else new for old, new in pairs]

    def or_at_home(self, previous: NDArray[np.int32] | None, layers: list[Layer]) -> list[Layer]:
        """Experts at home instead where that is more even, or where nobody can tell how uneven the layer would be."""
        made, tolerance = [], self.options.balance_tolerance
        enough, worth = (EVEN, 0.0) if previous is None else (1.0 + tolerance, WORTH_BALANCE)
        for number, layer in enumerate(layers):
            if not self._is_foreseen(layer) or layer.peak > enough:
                rule, _ = self._rule(number, MAX_ROWS)
                phy2log = solve_at_home(rule.load, self.cluster)
                if previous is not None:
                    renamed = relabel(phy2log, previous[number], self.cluster, len(rule.load))
                    phy2log = keep_slots(renamed, previous[number], self.cluster.slots_per_rank)
                home = as_used(rule, phy2log)
                if not self._is_foreseen(layer) or 1.0 / home.peak > 1.0 / layer.peak + worth:
                    layer = home
            made.append(layer)
        return made

    def _is_foreseen(self, layer: Layer) -> bool:
        """Whether its planned load is what ranks will get: where `cover` sends tokens depends on what they select
        together, unless experts are at home.
        """
        if self.dispatch != "cover" or self.topology.num_nodes == 1 or knows_tokens(self.statistics):
            return True
        return is_at_home(layer.phy2log, self.cluster, self.statistics.num_experts)

    def solve(self) -> list[Layer]:
        made = []
        for layer in range(self.statistics.num_layers):
            rule, pairs = self._rule(layer)
            solved = self._solve(rule, pairs)
            held = count_held(solved.phy2log, self.cluster, len(rule.load))
            made.append(even_out_parts(rule, solved, held, NO_LIMIT, LEAST))
        return self._on_all_tokens(made, self._search.rows)

    def repair(self, previous: Plan | Placement, allowed: Allowed) -> tuple[list[Layer], int]:
        """Few moves from the previous placement, as far as that is good enough, within what is allowed.

        Returns the layers, and how many of them were solved afresh.
        """
        layers = range(self.statistics.num_layers)
        rules = [self._rule(layer, self._search.repair_rows)[0] for layer in layers]
        made = [self._weigh(layer, rules[layer], previous) for layer in layers]
        resolved = 0
        for layer, budget in allowed.in_turn(np.array([old.peak - 1.0 for old in made])):
            old = made[layer].phy2log
            made[layer] = self._repair(rules[layer], made[layer], budget)
            if not self.options.is_bounded:
                made[layer], fresh = self._or_afresh(layer, made[layer], old)
                resolved += fresh
            made[layer] = self._even_out_parts(rules[layer], made[layer], old, budget)
            allowed.spend(made[layer].phy2log, old)
        return self._on_all_tokens(made, self._search.repair_rows), resolved

    def _on_all_tokens(self, layers: list[Layer], rows: int) -> list[Layer]:
        """Weights of `cover` that were fitted to `rows` tokens, fitted to all: few flatter."""
        if self.dispatch != "cover" or self.topology.num_nodes == 1 or rows >= MAX_ROWS:
            return layers
        rules = [self._rule(layer, MAX_ROWS)[0] for layer in range(len(layers))]
        pairs = zip(rules, layers, strict=True)
        return [as_used(rule, one.phy2log, rule.to_nodes(one.phy2log, one.use)) for rule, one in pairs]

    def as_plan(self, layers: list[Layer]) -> Plan:
        """`layers` in one plan; how long it took is not known here."""
        placement = Placement(stacked(layers), self.statistics.layer_ids)
        uses = [layer.use for layer in layers]
        source_weights = np.stack([use.source_shares for use in uses], axis=1) if self.dispatch == "weighted" else None
        shares = np.stack([use.shares for use in uses])
        cover_weights = np.stack([use.weights for use in uses]) if self.dispatch == "cover" else None
        return Plan(placement, self.topology, self.dispatch, shares, 0.0, source_weights, cover_weights)

    def _rule(self, layer: int, most_rows: int | None = None) -> tuple[Rule, Array]:
        statistics, search = self.statistics, self._search
        tokens, pairs = no_tokens(), np.zeros((1, 1))
        if self.topology.num_nodes > 1 and knows_tokens(statistics):
            rows = most_rows or search.rows
            tokens, pairs = layer_tokens(statistics, layer, self.topology, self.dispatch, rows)
        load, parts = above_zero(statistics.load[layer]), parts_above_zero(statistics, layer)
        kind = WeightedRule if self.dispatch == "weighted" else CoverRule
        ingress = self.options.ingress_tolerance
        return kind(load, parts, self.cluster, tokens, self.topology.node_of_slot, ingress, search), pairs

    def _weigh(self, layer: int, rule: Rule, start: Plan | Placement) -> Layer:
        if isinstance(start, Placement):
            return as_used(rule, start.phy2log[layer])
        phy2log, use = start.placement.phy2log[layer], None
        known = start.source_weights if self.dispatch == "weighted" else start.cover_weights
        if known is not None and start.topology == self.topology:
            by_source = known[:, layer] if self.dispatch == "weighted" else np.empty((0, len(phy2log)))
            weights = known[layer] if self.dispatch == "cover" else np.empty(0, np.int32)
            use = rule.to_nodes(phy2log, Use(start.replica_weights[layer], by_source, weights))
        return as_used(rule, phy2log, use)

    def _solve(self, rule: Rule, pairs: Array) -> Layer:
        made, tolerance = solve_layer(rule, pairs, self.num_groups), self.options.balance_tolerance
        if made.peak <= 1.0 + 2.0 * tolerance:
            return made
        topology = self.topology
        even = as_used(rule, solve_balanced(rule.load[None], topology.num_slots, topology.num_ranks)[0])
        if self.dispatch == "cover" and even.peak > 1.0 + 2.0 * tolerance:
            even = min(even, as_used(rule, solve_at_home(rule.load, self.cluster)), key=lambda layer: layer.peak)
        return even if 1.0 / even.peak > 1.0 / made.peak + tolerance else made

    def _repair(self, rule: Rule, old: Layer, budget: int) -> Layer:
        good_enough, per_rank = 1.0 + self.options.balance_tolerance, self.cluster.slots_per_rank
        before = count_held(old.phy2log, self.cluster, len(rule.load))
        repaired = mend(rule, old, before, budget, good_enough)
        if repaired.peak > good_enough:  # copies after swaps, or instead of them where moves are few
            bounds = Bounds(before, budget, good_enough)
            repaired = min((give_copies(rule, made, bounds) for made in (repaired, old)), key=lambda made: made.peak)
        return reordered(repaired, keep_slots(repaired.phy2log, old.phy2log, per_rank), per_rank)

    def _even_out_parts(self, rule: Rule, made: Layer, old: Array, budget: int) -> Layer:
        before, per_rank = count_held(old, self.cluster, len(rule.load)), self.cluster.slots_per_rank
        evened = even_out_parts(rule, made, before, budget, REAL_LEAST)
        return made if evened is made else reordered(evened, keep_slots(evened.phy2log, old, per_rank), per_rank)

    def _or_afresh(self, layer: int, repaired: Layer, old: Array) -> tuple[Layer, bool]:
        """-> the layer, and whether it was solved afresh."""
        rule, pairs = self._rule(layer)
        fresh = self._solve(rule, pairs)
        renamed = relabel(fresh.phy2log, old, self.cluster, len(rule.load))
        relabelled = keep_slots(renamed, old, self.cluster.slots_per_rank)
        if not _is_worth_it(rule, repaired, fresh, 1.0 + self.options.balance_tolerance):
            return repaired, False
        return as_used(rule, relabelled), True


def above_zero(load: NDArray[Any]) -> NDArray[np.float64]:
    """load: [..., E] with idle experts as nearly idle ones; a layer without any load counts as even."""
    mean = load.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.maximum(load.astype(np.float64), np.where(mean > 0.0, LEAST_LOAD * mean, 1.0))


def parts_above_zero(statistics: RoutingStatistics, layer: int) -> NDArray[np.float64]:
    """[W, E] `parts_of` a layer whose sum is its load `above_zero`."""
    parts = parts_of(statistics, layer)
    parts[0] += above_zero(statistics.load[layer]) - parts.sum(axis=0)
    return parts


def parts_by_layer(statistics: RoutingStatistics) -> NDArray[np.float64]:
    """[L, W, E] the same of all layers; those with fewer parts have empty ones at the end."""
    found = [parts_above_zero(statistics, layer) for layer in range(statistics.num_layers)]
    most = max(len(parts) for parts in found)
    return np.stack([np.pad(parts, ((0, most - len(parts)), (0, 0))) for parts in found])


def stacked(layers: list[Layer]) -> NDArray[np.int32]:
    """[L, P] logical expert of every slot."""
    return np.stack([layer.phy2log for layer in layers])


def _is_worth_it(rule: Rule, repaired: Layer, fresh: Layer, good_enough: float) -> bool:
    """Whether a full solve gains so much that moving nearly everything is justified."""
    gain = 1.0 / fresh.peak - 1.0 / repaired.peak
    if gain >= WORTH_BALANCE and repaired.peak > good_enough:
        return True
    if gain <= -WORTH_BALANCE:
        return False
    crossings = [rule.arrivals(rule.to_nodes(layer.phy2log, layer.use)).sum() for layer in (repaired, fresh)]
    return crossings[1] < (1.0 - WORTH_CROSSINGS) * crossings[0]
