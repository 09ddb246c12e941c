"""One layer as even as its rule lets ranks be, wherever tokens go."""

from __future__ import annotations

from ..replicas.at_home import solve_at_home
from ..rules.base import Layer, Rule
from ..rules.nearest_swaps import level_nearest
from .packing import solve_balanced
from .solve import as_used

EVEN = 1.004  # busiest rank over the mean that is not improved on


def solve_evenly(rule: Rule, homes: bool) -> Layer:
    """From scratch. homes: whether the rule prefers near copies, so that experts at home may be more even."""
    cluster, slots = rule.cluster, len(rule.node_of_slot)
    found = [as_used(rule, solve_balanced(rule.load[None], slots, len(cluster.node_of_rank))[0])]
    if homes and found[0].peak > EVEN:
        found.append(as_used(rule, solve_at_home(rule.load, cluster)))
    if cluster.nearest:
        found += [level_exactly(rule, layer) for layer in found]
    return min(found, key=lambda layer: layer.peak)


def level_exactly(rule: Rule, layer: Layer) -> Layer:
    """A layer under `nearest` after swaps that the rule itself has judged."""
    phy2log, cluster = layer.phy2log.copy(), rule.cluster
    level_nearest(rule.load, phy2log, cluster.node_of_rank, cluster.slots_per_rank)
    return as_used(rule, phy2log)
