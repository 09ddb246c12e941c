"""One layer as even as the rule lets ranks be, wherever tokens go: rules whose copies have no weights of their own."""

from __future__ import annotations

from functools import partial

from ..dispatch.rules import replica_weights
from ..jit import Array
from ..placement import Placement
from ..topology import Topology
from .at_home import solve_at_home
from .crossings import Cluster
from .incremental import expected_balance
from .joint_types import peak_ratio
from .level_nearest import level_nearest
from .packing import solve_balanced
from .ranks import count_held
from .repair import NO_LIMIT, repair
from .tokens import Tokens, no_tokens


def solve_evenly(load: Array, topology: Topology, cluster: Cluster, ratio: float) -> Array:
    """load: [E] -> phy2log [P]. ratio: busiest rank over the mean that repairing shares leaves alone."""
    packed = solve_balanced(load[None], topology.num_slots, topology.num_ranks)[0]
    if not cluster.nearest:
        return packed
    found = [packed, packed.copy(), solve_at_home(load, cluster)]
    relieve(load, found[1], cluster, no_tokens(), ratio)
    return leveled(load, most_even(load, found, topology), topology)


def relieve(load: Array, phy2log: Array, cluster: Cluster, tokens: Tokens, ratio: float) -> None:
    """What packing could not see, in place: other nodes, and shares there."""
    repair(load, phy2log, count_held(phy2log, cluster, len(load)), cluster, tokens, ratio, NO_LIMIT)


def leveled(load: Array, phy2log: Array, topology: Topology) -> Array:
    """Under `nearest`, after swaps that the rule itself has judged."""
    made = phy2log.copy()
    level_nearest(load, made, topology.node_of_rank, topology.slots_per_rank)
    return made


def most_even(load: Array, found: list[Array], topology: Topology) -> Array:
    """Of placements under `nearest`; the first of equal ones."""
    return max(found, key=partial(nearest_balance, load, topology=topology))


def balance(load: Array, phy2log: Array, topology: Topology, cluster: Cluster) -> float:
    """Mean over busiest rank's load."""
    if cluster.nearest:
        return nearest_balance(load, phy2log, topology)
    return float(expected_balance(load, phy2log, cluster))


def nearest_balance(load: Array, phy2log: Array, topology: Topology) -> float:
    """The same under `nearest`, exactly: copies may serve a source rank more than others of their node do."""
    shares = replica_weights(Placement(phy2log[None]), topology, "nearest")[0]
    return 1.0 / peak_ratio(shares * load[phy2log], topology.num_ranks)
