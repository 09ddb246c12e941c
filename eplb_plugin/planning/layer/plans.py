"""One layer from scratch, or by few moves from the placement in use, under any rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...jit import Array
from ...placement import Placement
from ...plan_types import Dispatch, Plan, PlanOptions
from ...topology import Topology
from ..moves.budget import NO_LIMIT
from ..moves.more_replicas import Bounds, give_copies
from ..moves.phases import LEAST, REAL_LEAST
from ..moves.ranks import count_held
from ..moves.relabel import keep_slots, relabel
from ..moves.relief import repair as relieve_ranks
from ..replicas.at_home import solve_at_home
from ..rules.base import Layer, Rule, reordered
from .affinity import solve_affinity
from .evenly import EVEN, level_exactly, solve_evenly
from .repair import repair_layer
from .solve import as_used, even_out_parts, mend, solve_layer

NODE_SHARE = 0.25  # of the balance tolerance that nodes may use up, before their ranks are packed (`hash`)
WORTH_BALANCE = 0.02  # what a full solve must gain over a repair …
WORTH_CROSSINGS = 0.1  # … or save, to be worth moving nearly everything


@dataclass(frozen=True)
class LayerPlanner:
    """What is the same for all layers. keeps_locality: whether it matters which nodes tokens visit; prefers_near:
    whether the rule sends them to near copies by itself; num_groups: the model's expert groups.
    """

    options: PlanOptions
    keeps_locality: bool
    prefers_near: bool
    num_groups: int

    @property
    def good_enough(self) -> float:
        """Busiest rank over the mean."""
        return 1.0 + self.options.balance_tolerance

    def solve(self, rule: Rule, pairs: Array) -> Layer:
        """From scratch. pairs: [E, E] co-activation."""
        if not self.keeps_locality:
            return solve_evenly(rule, self.prefers_near)
        tolerance = self.options.balance_tolerance
        if rule.has_shares or rule.cluster.nearest:
            made, enough = solve_layer(rule, pairs, self.num_groups), 1.0 + 2.0 * tolerance
        else:
            made, enough = self._solve_hash(rule, pairs), self.good_enough
        if made.peak <= enough:
            return made
        even = solve_evenly(rule, self.prefers_near)
        return even if 1.0 / even.peak > 1.0 / made.peak + tolerance else made

    def _solve_hash(self, rule: Rule, pairs: Array) -> Layer:
        """Where a copy serves the same from anywhere, and only its place decides which nodes are even."""
        load, cluster = rule.load, rule.cluster
        phy2log = solve_affinity(rule, pairs, self.num_groups, NODE_SHARE * self.options.balance_tolerance)
        before = count_held(phy2log, cluster, len(load))
        relieve_ranks(load, phy2log, before, cluster, rule.tokens, self.good_enough, NO_LIMIT)
        return as_used(rule, phy2log)

    def even_out_parts(self, rule: Rule, made: Layer, old: Array | None, budget: int = NO_LIMIT) -> Layer:
        """Every part of the traffic evened out, too. old: [P] where moves began to count; None: nothing was there."""
        cluster, start = rule.cluster, made.phy2log if old is None else old
        before = count_held(start, cluster, len(rule.load))
        evened = even_out_parts(rule, made, before, budget, LEAST if old is None else REAL_LEAST)
        return made if evened is made else self._in_old_slots(rule, evened, start)

    def repair(self, rule: Rule, old: Layer, budget: int) -> Layer:
        """As far as it is good enough, within `budget` moves."""
        if not rule.has_shares:
            ingress = self.options.ingress_tolerance
            return as_used(
                rule, repair_layer(rule.load, old.phy2log, rule.cluster, rule.tokens, self.good_enough, budget, ingress)
            )
        before = count_held(old.phy2log, rule.cluster, len(rule.load))
        repaired = mend(rule, old, before, budget, self.good_enough)
        if repaired.peak > self.good_enough:  # copies after swaps, or instead of them where moves are few
            bounds = Bounds(before, budget, self.good_enough)
            repaired = min((give_copies(rule, made, bounds) for made in (repaired, old)), key=lambda made: made.peak)
        return self._in_old_slots(rule, repaired, old.phy2log)

    def or_afresh(self, rule: Rule, pairs: Array, repaired: Layer, old: Array) -> tuple[Layer, bool]:
        """-> the layer, and whether it was solved afresh."""
        fresh = self.solve(rule, pairs)
        # labelled before it is known to pay: whatever may run is compiled when a server starts
        renamed = relabel(fresh.phy2log, old, rule.cluster, len(rule.load))
        moved = as_used(rule, keep_slots(renamed, old, rule.cluster.slots_per_rank))
        if not self._is_worth_it(rule, repaired, fresh):
            return repaired, False
        if not rule.cluster.nearest:
            return moved, True
        # it depends on a node's number whom a copy serves: new labels may need a repair
        mended = self.repair(rule, moved, NO_LIMIT)
        best = min(repaired, mended, level_exactly(rule, moved), key=lambda layer: layer.peak)
        return self._in_old_slots(rule, best, old), best is not repaired

    def or_at_home(self, rule: Rule, layer: Layer, old: Array | None, is_foreseen: bool) -> Layer:
        """Experts at home instead where that is more even, or where nobody can tell how uneven the layer would be."""
        enough, worth = (EVEN, 0.0) if old is None else (self.good_enough, WORTH_BALANCE)
        if is_foreseen and layer.peak <= enough:
            return layer
        phy2log, cluster = solve_at_home(rule.load, rule.cluster), rule.cluster
        if old is not None:
            phy2log = keep_slots(relabel(phy2log, old, cluster, len(rule.load)), old, cluster.slots_per_rank)
        home = as_used(rule, phy2log)
        return home if not is_foreseen or 1.0 / home.peak > 1.0 / layer.peak + worth else layer

    def _in_old_slots(self, rule: Rule, layer: Layer, old: Array) -> Layer:
        per_rank = rule.cluster.slots_per_rank
        return reordered(layer, keep_slots(layer.phy2log, old, per_rank), per_rank)

    def _is_worth_it(self, rule: Rule, repaired: Layer, fresh: Layer) -> bool:
        """Whether a full solve gains so much that moving nearly everything is justified."""
        gain = 1.0 / fresh.peak - 1.0 / repaired.peak
        if gain >= WORTH_BALANCE and repaired.peak > self.good_enough:
            return True
        if not self.keeps_locality or gain <= -WORTH_BALANCE:
            return False
        crossings = [rule.arrivals(rule.to_nodes(layer.phy2log, layer.use)).sum() for layer in (repaired, fresh)]
        return bool(crossings[1] < (1.0 - WORTH_CROSSINGS) * crossings[0])


def join_layers(layers: list[Layer], layer_ids: NDArray[np.int32], topology: Topology, dispatch: Dispatch) -> Plan:
    """One plan of all layers; how long it took is not known here."""
    placement, uses = Placement(np.stack([layer.phy2log for layer in layers]), layer_ids), [one.use for one in layers]
    source_weights = np.stack([use.source_shares for use in uses], axis=1) if dispatch == "weighted" else None
    cover_weights = np.stack([use.weights for use in uses]) if dispatch == "cover" else None
    shares = np.stack([use.shares for use in uses])
    return Plan(placement, topology, dispatch, shares, 0.0, source_weights, cover_weights)
