"""One layer's replicas, weights and packing together, for every rule.

Experts to nodes, replicas, weights per node, in turns; then ranks: pack, split, and swap until the planned load is
flat. What depends on the rule is behind `Rule`; nothing here knows which one runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...jit import Array
from ..moves.balance import level_ranks
from ..moves.budget import NO_LIMIT
from ..moves.locality import REAL_SHARE, REAL_SIGMAS, Demands, save_visits
from ..moves.phases import busiest_in_turn, even_parts
from ..moves.ranks import count_held
from ..moves.swap_state import SwapBounds, SwapState, open_swaps, reopen_swaps
from ..replicas.counts import TOO_HEAVY, apportion, copy_limit, list_copies
from ..rules.base import Layer, Rule, cap_shares, keep_at_home, node_shares, peak_ratio
from ..sample import every
from ..traffic.fixed_rules import Cluster, count_sources
from ..traffic.node_visits import open_visits
from ..traffic.weighted import arrival_cost
from .packing import pack
from .partition import ANYWHERE, Limits, Needs, grow_groups, grow_nodes, refine_nodes

HOME_TOLERANCE = 0.02  # node overload while nothing is replicated yet …
NODE_TOLERANCE = 0.003  # … and around the replicas …
SLACK = 0.3  # … or this part of what the heaviest copy exceeds a rank's mean by, however experts are placed
AIM = 0.002  # overload of a rank that is left alone
BETTER = 5e-4
TURNS = 4


def solve_layer(rule: Rule, pairs: Array, groups: int) -> Layer:
    """From scratch. pairs: [E, E] co-activation; groups: the model's expert groups."""
    slack = SLACK * (_heaviest_copy(rule) - 1.0)
    home = _best_start(rule, pairs, groups, slack)
    made = [_one_turn(rule, home, slack)]
    for _ in range(rule.search.turns - 1 if len(rule.node_of_slot) > len(rule.load) else 0):
        made.append(_one_turn(rule, home, slack))
    best = min(made, key=lambda turn: _turn_cost(rule, turn[1])) if len(made) > 1 else made[0]
    return _to_ranks(rule, *best)


def _best_start(rule: Rule, pairs: Array, groups: int, slack: float) -> Array:
    """[E] int32 homes after one turn from the best of a few starts: made from half of the tokens, judged on the rest.

    Turns end in very different hollows, and the deepest on its own tokens is often just the best fitted one.
    """
    if rule.search.starts == 1:
        return _homes(rule, pairs, groups, max(HOME_TOLERANCE, slack))[0]
    known, unseen = (rule.with_tokens(every(rule.tokens, 2, first)) for first in (0, 1))
    starts = _homes(known, pairs, groups, max(HOME_TOLERANCE, slack))
    costs = [_turn_cost(unseen, _one_turn(known, home, slack)[1]) for home in starts]
    return starts[int(np.argmin(costs))]


def _turn_cost(rule: Rule, use: Array) -> float:
    return arrival_cost(rule.arrivals(use), rule.ingress_tolerance)


def _one_turn(rule: Rule, home: Array, slack: float) -> tuple[Array, Array]:
    """Replicas around the experts' homes, then the other experts' homes, in place, around the replicas.

    Returns copies [E, nodes] and the node use. Turns end in different hollows: keep the best of a few.
    """
    load, cluster = rule.load, rule.cluster
    copies = np.zeros((len(load), cluster.num_nodes), np.int32)
    copies[np.arange(len(load)), home] = 1
    free = len(rule.node_of_slot) // cluster.num_nodes - copies.sum(axis=0)
    use = rule.add_replicas(copies, free, load.sum() / len(cluster.node_of_rank))
    left = copies[np.arange(len(load)), home] == 0
    home[left] = copies[left].argmax(axis=1)
    use = rule.settle(copies, use)
    movable = copies.sum(axis=1) == 1
    fixed_load = (rule.shares(use) * load[:, None])[~movable].sum(axis=0)
    rows, pins = rule.pins(use, movable)
    limits = Limits(max(NODE_TOLERANCE, slack), rule.ingress_tolerance, fixed_load)
    refine_nodes(load, home, movable, Needs(rows, pins, _own_visits(rule)), limits, rule.search.sweeps)
    copies[movable] = 0
    copies[movable, home[movable]] = 1
    keep_at_home(use, movable, home)
    return copies, rule.settle(copies, use)


def _heaviest_copy(rule: Rule) -> float:
    """Load of the heaviest copy over a rank's mean if copies are made for even loads alone: no plan is flatter."""
    ranks, slots = len(rule.cluster.node_of_rank), len(rule.node_of_slot)
    copies = apportion(rule.load, slots, copy_limit(len(rule.load), slots, ranks))
    return float((rule.load / copies).max() * ranks / rule.load.sum())


def _homes(rule: Rule, pairs: Array, groups: int, tolerance: float) -> list[Array]:
    """[E] int32 nodes of every expert if there were no replicas: from several starts, refined."""
    load, nodes, tokens = rule.load, rule.cluster.num_nodes, rule.tokens
    movable = np.ones(len(load), np.bool_)
    limits, own = Limits(tolerance, ANYWHERE, np.zeros(nodes)), _own_visits(rule)
    pins = np.zeros((len(tokens.rows), nodes), np.int16)
    if rule.own_is_free:
        pins[np.arange(len(pins)), rule.cluster.node_of_rank[tokens.source]] = 1
    starts = [grow_nodes(load, pairs, nodes, tolerance, start) for start in range(rule.search.starts)]
    if groups > 1:
        starts[-1] = grow_groups(load, pairs, nodes, groups, tolerance)
    for home in starts:
        refine_nodes(load, home, movable, Needs(tokens.rows, pins.copy(), own), limits, rule.search.sweeps)
    return starts


def _own_visits(rule: Rule) -> Array:
    """[nodes] tokens that visit a node for free, as they come from it."""
    return count_sources(rule.tokens.source, rule.cluster) * np.int64(rule.own_is_free)


def pack_nodes(per_copy: Array, copies: Array, cluster: Cluster) -> Array:
    """per_copy, copies: [E, nodes] -> phy2log [P] int32, every node's replicas packed onto its ranks."""
    phy2log = np.empty((len(cluster.node_of_rank), cluster.slots_per_rank), np.int32)
    for node in range(cluster.num_nodes):
        items = list_copies(np.ascontiguousarray(copies[:, node]))
        here = np.flatnonzero(cluster.node_of_rank == node)
        phy2log[here] = pack(items, per_copy[items, node], len(here))
    return phy2log.ravel()


def _to_ranks(rule: Rule, copies: Array, node_use: Array) -> Layer:
    """Pack, weigh, and swap, until the busiest rank's planned load is flat; the flattest of a few tries."""
    load, cluster = rule.load, rule.cluster
    experts, nodes, ranks = len(load), cluster.num_nodes, len(cluster.node_of_rank)
    shares = rule.shares(node_use)
    best: Layer | None = None
    for attempt in range(rule.search.tries):
        cap_shares(shares, load, copies, TOO_HEAVY * load.sum() / ranks)
        phy2log = pack_nodes(load[:, None] * shares / np.maximum(copies, 1), copies, cluster)
        made = level(rule, as_used(rule, phy2log, node_use), count_held(phy2log, cluster, experts))
        if best is None or made.peak < best.peak - BETTER:
            best = made
        if made.peak <= 1.0 + 2.0 * AIM or attempt == rule.search.tries - 1:
            break
        node_use = rule.to_nodes(made.phy2log, made.use)
        copies = node_shares(made.phy2log, rule.node_of_slot, np.ones(len(phy2log)), experts, nodes).astype(np.int32)
        shares = node_shares(made.phy2log, rule.node_of_slot, made.use.shares, experts, nodes)
    assert best is not None
    return best


def as_used(rule: Rule, phy2log: Array, before: Array | None = None) -> Layer:
    """A placement with its weights and what they come to; before: node use to price nodes by."""
    use = rule.use_of(phy2log, before)
    return Layer(phy2log, use, peak_ratio(use.shares * rule.load[phy2log], len(rule.cluster.node_of_rank)))


def level(rule: Rule, made: Layer, before: Array) -> Layer:
    """Swap slots of a placement until its planned load is flat, and weigh it again.

    before: [ranks, E] what every rank held when moves began to count.
    """
    if made.peak <= 1.0 + 2.0 * AIM:
        return made
    bounds = SwapBounds(before, NO_LIMIT, rule.ingress_tolerance)
    again = _swapped(rule, made, bounds, lambda state: level_ranks(state, AIM))
    return again if again.peak < made.peak else made


def mend(rule: Rule, old: Layer, before: Array, budget: int, good_enough: float) -> Layer:
    """The same from a placement in use, within `budget` moves: as flat as is good enough, then fewer crossings."""
    aim, bounds = (good_enough - 1.0) / 2.0, SwapBounds(before, budget, rule.ingress_tolerance)
    demands = Demands(rule.load.sum() / len(before) * good_enough, REAL_SHARE, REAL_SIGMAS)

    def flatten(state: SwapState) -> int:
        return level_ranks(state, aim)

    def bring_near(state: SwapState) -> int:
        return save_visits(state, demands)

    if old.peak > good_enough:
        both = _swapped(rule, old, bounds, lambda state: flatten(state) + bring_near(reopen_swaps(state)))
        if both.peak <= good_enough:
            return both
        flatter = _swapped(rule, old, bounds, flatten)  # weighed in between: what is near must not get in the way
        old = flatter if flatter.peak < old.peak else old
    nearer = _swapped(rule, old, bounds, bring_near)
    return nearer if nearer.peak <= max(old.peak, good_enough) else old


def even_out_parts(rule: Rule, made: Layer, before: Array, budget: int, least: float) -> Layer:
    """`made` with swaps after which ranks are even in every part of the traffic, as far as that pays.

    before: [ranks, E] what ranks held when moves began to count; budget: most moved slots; least: crossings per token
    that a swap must be worth for each.
    """
    parts, ranks = rule.parts, len(rule.cluster.node_of_rank)
    if len(parts) < 2:
        return made

    bounds = SwapBounds(before, budget, rule.ingress_tolerance)
    peak = busiest_in_turn(parts[:, made.phy2log] * made.use.shares, ranks)
    for _ in range(TURNS):  # weights are solved again in between
        swapped = _swapped(rule, made, bounds, lambda state: even_parts(state, least), parts)
        now = busiest_in_turn(parts[:, swapped.phy2log] * swapped.use.shares, ranks)
        if now >= peak:
            break
        made, peak = swapped, now
    return made


def _swapped(
    rule: Rule, made: Layer, bounds: SwapBounds, search: Callable[[SwapState], int], parts: Array | None = None
) -> Layer:
    """`made` after the swaps of `search`, weighed again; itself if there were none. parts: [W, E] loads; None: the sum
    alone.
    """
    load, cluster, phy2log = rule.load, rule.cluster, made.phy2log.copy()
    single, home = np.bincount(phy2log, minlength=len(load)) == 1, np.zeros(len(load), np.int32)
    home[phy2log] = rule.node_of_slot
    node_use = rule.to_nodes(phy2log, made.use)
    rows, pins = rule.pins(node_use, single)
    visits = open_visits(rows, pins, home, _own_visits(rule))  # keeps `home` up to date
    slot_load = np.ascontiguousarray((load[None] if parts is None else parts)[:, phy2log] * made.use.shares)
    if search(open_swaps(phy2log, slot_load, cluster, single | rule.is_nodeless, visits, bounds)) == 0:
        return made
    keep_at_home(node_use, single, home)
    return as_used(rule, phy2log, node_use)
