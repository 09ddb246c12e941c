"""One call of `plan()`: every layer from scratch, or from the old placement within the bounds on moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..dispatch.rules import replica_weights
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
from .even_layers import even_layers
from .incremental import expected_balance, expected_crossings, repair_layer
from .packing import solve_balanced
from .price import skip_unpaid
from .ranks import count_held
from .relabel import keep_slots, relabel
from .repair import NO_LIMIT, repair
from .tokens import Tokens, layer_tokens, no_tokens
from .weighing import WEIGHED, Weigher, stacked

Repaired = TypeVar("Repaired")
NODE_SHARE = 0.25  # of the balance tolerance that nodes may use up, before their ranks are packed
WORTH_BALANCE = 0.02  # a full solve must be better balanced by this much, or …
WORTH_CROSSINGS = 0.05  # … send this share fewer copies to other nodes, to be worth moving nearly everything


def plan_of(placement: Placement, topology: Topology, dispatch: Dispatch) -> Plan:
    """A placement that exists already, and how the rule uses it."""
    found = placement.num_slots
    if found != topology.num_slots:
        expected = f"{topology.num_slots} on {topology.num_ranks} ranks"
        raise mismatch("placement slots", found=found, expected=expected, fix="pass the topology it was made for")
    return Plan(placement, topology, dispatch, replica_weights(placement, topology, dispatch), 0.0)


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
    def keeps_locality(self) -> bool:
        return self.policy == "affinity" and self.topology.num_nodes > 1

    @property
    def shares_evenly(self) -> bool:
        """Whether neither crossings nor a copy's load depend on where its expert's copies lie."""
        return not self.keeps_locality and self.dispatch == "hash"

    @property
    def is_bounded(self) -> bool:
        return self.options.max_moved_slots is not None or self.options.max_moved_slots_total is not None

    def made(self, previous: Placement | None) -> Plan:
        if self.dispatch in WEIGHED:
            return self._weighed(previous)
        phy2log, resolved = self._placed(previous)
        return replace(self.used(phy2log), resolved_layers=resolved)

    def priced(self, previous: Placement) -> Plan:
        """Where the usual move does not pay, a repair alone may, if it was not one already."""
        candidates = [partial(self.made, previous)]
        if self.policy != "deepseek" and not self.is_bounded:
            repair_only = replace(self.options, max_moved_slots=self.topology.num_slots)
            candidates.append(partial(replace(self, options=repair_only).made, previous))
        return skip_unpaid(self.used(previous.phy2log), candidates, self.statistics, self.options)

    def used(self, phy2log: NDArray[np.int32]) -> Plan:
        """phy2log: [L, P] as it is, with the best use that the rule can make of it."""
        if self.dispatch in WEIGHED:
            return self._weigher.as_plan(self._weigher.weigh(phy2log))
        return plan_of(Placement(phy2log, self.statistics.layer_ids), self.topology, self.dispatch)

    @property
    def _weigher(self) -> Weigher:
        return Weigher(self.statistics, self.topology, self.dispatch, self.num_groups, self.options)

    def _weighed(self, previous: Placement | None) -> Plan:
        weigher = self._weigher
        if self.keeps_locality and previous is None:
            return replace(weigher.as_plan(weigher.solve()), resolved_layers=self.statistics.num_layers)
        if self.keeps_locality and previous is not None:
            old = previous.phy2log
            repair = partial(weigher.repair, old, self.is_bounded)
            layers, resolved = self._within_bounds(old, repair, stacked)
            return replace(weigher.as_plan(layers), resolved_layers=resolved)
        phy2log, resolved = self._placed(previous)
        layers = weigher.weigh(phy2log)
        if previous is not None and self.policy != "deepseek":
            layers = weigher.prefer(previous.phy2log, layers)
        return replace(weigher.as_plan(layers), resolved_layers=resolved)

    def _placed(self, previous: Placement | None) -> tuple[NDArray[np.int32], int]:
        """-> phy2log [L, P], and the number of layers that were solved afresh."""
        if self.policy == "deepseek":
            return self.vanilla(previous), self.statistics.num_layers
        return (self.solve(), self.statistics.num_layers) if previous is None else self.repair(previous.phy2log)

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
        return self._within_bounds(previous, partial(self._repair_within, previous), lambda phy2log: phy2log)

    def _within_bounds(
        self,
        previous: NDArray[np.int32],
        repair: Callable[[Array], tuple[Repaired, int]],
        phy2log_of: Callable[[Repaired], NDArray[np.int32]],
    ) -> tuple[Repaired, int]:
        """What `repair` makes of a budget per layer, [L], such that both bounds on moves are kept."""
        cap, total = self.options.max_moved_slots, self.options.max_moved_slots_total
        made, resolved = repair(np.full(len(previous), NO_LIMIT if cap is None else cap, np.int64))
        if total is not None:
            wanted = count_moved(phy2log_of(made), previous, self.topology.num_ranks, self.statistics.num_experts)
            if wanted.sum() > total:  # again, every layer with its share
                made, resolved = repair(share_out(wanted, total))
        return made, resolved

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
        repaired, is_poor = even_layers(self.load, previous, self.cluster.node_of_rank, slots, ratio, budgets)
        poor = np.flatnonzero(is_poor)
        if self.is_bounded or not len(poor):
            return repaired, 0
        fresh = solve_balanced(self.load[poor], self.topology.num_slots, self.topology.num_ranks)
        for layer, slots_afresh in zip(poor, fresh, strict=True):
            repaired[layer] = relabel(slots_afresh, previous[layer], self.cluster, self.statistics.num_experts)
        return repaired, len(poor)

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
