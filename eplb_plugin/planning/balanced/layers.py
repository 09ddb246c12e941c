"""All layers evened out from an old placement, where every copy of an expert serves the same share.

Moves that relieve the busiest rank (`moves.py`) nearly always suffice. Where they do not, because ranks have one or
two slots or experts are few, a full solve tells what can be reached, and the old placement is brought near it: the
copy counts of the full solve first, then swaps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...jit import Array, kernel
from ...plan_types import PlanOptions
from ...topology import Topology
from ..layer.packing import rank_peak, solve_balanced, write_row
from ..moves.budget import NO_LIMIT, count_moved, share_out
from ..moves.relabel import keep_slots, relabel_layers
from ..replicas.counts import apportion, copy_limit
from ..traffic.fixed_rules import Cluster
from .moves import even_out, swap_out
from .state import EvenRanks, may_hold, open_even, overwrite, weights_received

FEW_SLOTS = 2  # on a rank: what can be reached is not known without a full solve
SLACK = 0.005  # a busiest rank this close to the full solve's is as good
CLEARLY = 0.01  # a full solve whose busiest rank is lighter by more than this is worth moving nearly everything


@kernel
def peak_of(load: Array, phy2log: Array, slots: int) -> float:
    """Load of the busiest rank, relative to the mean; 1.0 without load."""
    total = load.sum()
    return rank_peak(load, phy2log, slots) * (phy2log.shape[0] // slots) / total if total > 0.0 else 1.0


@kernel
def even_balance(load: Array, phy2log: Array, slots: int) -> Array:
    """[L] mean over busiest rank's load, 1.0 where there is no load."""
    balance = np.empty(load.shape[0])
    for layer in range(load.shape[0]):
        balance[layer] = 1.0 / peak_of(load[layer], phy2log[layer], slots)
    return balance


@kernel
def _missing(even: EvenRanks, wanted: Array) -> int:
    """Expert with most load per copy of those that have fewer copies than `wanted: [E]`; -1 if none."""
    chosen, heaviest = -1, -1.0
    for expert in range(wanted.shape[0]):
        if even.copies[expert] < wanted[expert] and even.part[expert] > heaviest:
            chosen, heaviest = expert, even.part[expert]
    return chosen


@kernel
def _spared(even: EvenRanks, wanted: Array, expert: int) -> int:
    """Slot for a copy of `expert`, on the lightest rank, of one with more copies than `wanted: [E]`; -1 if none."""
    chosen, lightest = -1, np.inf
    for slot in range(even.expert.shape[0]):
        victim, rank = even.expert[slot], even.rank_of[slot]
        left = even.rank_load[rank] - even.weight[slot]
        if left < lightest and even.copies[victim] > wanted[victim] and may_hold(even, rank, expert):
            chosen, lightest = slot, left
    return chosen


@kernel
def recount(load: Array, phy2log: Array, slots: int, budget: int) -> int:
    """Change `phy2log: [P]`, in place, to the copy counts of a full solve. -> budget left."""
    size, experts = phy2log.shape[0], load.shape[0]
    even, wanted = open_even(load, phy2log, slots), apportion(load, size, copy_limit(experts, size, size // slots))
    while budget > 0:
        expert = _missing(even, wanted)
        slot = _spared(even, wanted, expert)
        if expert < 0 or slot < 0:
            break
        budget -= weights_received(even, even.rank_of[slot], expert, even.expert[slot])
        overwrite(even, slot, expert)
    return budget


@kernel
def even_layers(
    load: Array, previous: Array, node_of_rank: Array, slots: int, peak_ratio: float, budget: Array
) -> tuple[Array, Array]:
    """load: [L, E]; previous: [L, P]; budget: [L] most moved slots -> phy2log [L, P] int32, unmoved experts in their
    old slots; [L] bool: whether the target was missed and a full solve would be clearly better.
    """
    ranks, is_poor = node_of_rank.shape[0], np.zeros(load.shape[0], np.bool_)
    phy2log = previous.copy()
    for layer in range(load.shape[0]):
        new = phy2log[layer]
        if slots > FEW_SLOTS:
            even_out(load[layer], new, node_of_rank, slots, peak_ratio, budget[layer])
        peak = peak_of(load[layer], new, slots)
        if peak > peak_ratio * (1.0 + SLACK):
            fresh = solve_balanced(load[layer : layer + 1], new.shape[0], ranks)[0]
            reachable = peak_of(load[layer], fresh, slots)
            goal = max(reachable * (1.0 + SLACK), peak_ratio)
            if peak > goal:
                second = previous[layer].copy()
                left = recount(load[layer], second, slots, budget[layer])
                swap_out(load[layer], second, node_of_rank, slots, goal, left)
                second_peak = peak_of(load[layer], second, slots)
                if second_peak < peak:
                    new, peak = second, second_peak
            is_poor[layer] = peak > max(reachable * (1.0 + CLEARLY), peak_ratio)
        write_row(phy2log, layer, keep_slots(new, previous[layer], slots))
    return phy2log, is_poor


def repair_layers(
    load: NDArray[np.float64], previous: NDArray[np.int32], topology: Topology, options: PlanOptions
) -> tuple[NDArray[np.int32], int]:
    """`even_layers` within the options' bounds on moves -> phy2log [L, P], and how many layers were solved afresh."""
    cap, total = options.max_moved_slots, options.max_moved_slots_total
    budgets = np.full(len(previous), NO_LIMIT if cap is None else cap, np.int64)
    made, resolved = _repair_once(load, previous, topology, options, budgets)
    if total is not None:
        wanted = count_moved(made, previous, topology.num_ranks, load.shape[1])
        if wanted.sum() > total:  # again, every layer with its share: that is quick here
            made, resolved = _repair_once(load, previous, topology, options, share_out(wanted, total))
    return made, resolved


def _repair_once(
    load: NDArray[np.float64], previous: NDArray[np.int32], topology: Topology, options: PlanOptions, budgets: Array
) -> tuple[NDArray[np.int32], int]:
    slots, ratio = topology.slots_per_rank, 1.0 + options.balance_tolerance
    repaired, is_poor = even_layers(load, previous, topology.node_of_rank, slots, ratio, budgets)
    if options.is_bounded:
        return repaired, 0
    poor = np.flatnonzero(is_poor)  # even if there are none: whatever may run is compiled when a server starts
    fresh = solve_balanced(load[poor], topology.num_slots, topology.num_ranks)
    cluster = Cluster(topology.node_of_rank, topology.num_nodes, slots, False)
    relabel_layers(repaired, poor, fresh, previous, cluster, load.shape[1])
    return repaired, len(poor)
