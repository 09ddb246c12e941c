"""Lower the busiest rank by few moves, each worth its weights and, where tokens are known, its crossings.

A move is a swap of two slots, or a redundant copy overwritten by a copy of an expert of the busiest rank. Moves are
counted as `score.moved_slots` counts them: weights that a rank must receive, against where the placement started.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..sample import Tokens
from ..traffic.fixed_rules import Cluster, copy_values, count_sources, expert_shares, fixed_pins
from ..traffic.node_visits import Visits, open_visits, swap_changes, swap_experts
from .balance import LEAST_RELIEF, RELIEF_PRICE
from .ranks import Ranks, may_take, mean_load, open_ranks, receipt, received, swap_receipts, swap_slots, write_slot

LEAST_COST = 0.5  # of a move that needs no weight, because it undoes another


def open_singles(ranks: Ranks, cluster: Cluster, tokens: Tokens) -> tuple[Array, Visits]:
    """[E] bool experts with one copy, and what tokens visit because of them."""
    singles, pins = fixed_pins(ranks.copies, cluster, tokens)
    node_of = ranks.copies.argmax(axis=1).astype(np.int32)
    own = count_sources(tokens.source, cluster) if cluster.nearest else np.zeros(cluster.num_nodes, np.int64)
    return ranks.copies.sum(axis=1) == 1, open_visits(singles, pins, node_of, own)


@kernel
def _best_swap(
    busiest: int, budget: int, ranks: Ranks, cluster: Cluster, movable: Array, visits: Visits, price: float
) -> tuple[float, int, int]:
    """(value per received weight, slot of the busiest rank, other slot); value 0 if no swap relieves it.

    price: crossings that the relief of one unit of load is worth; movable: [E] experts that may change node.
    """
    slots, rank_load, least = cluster.slots_per_rank, ranks.rank_load, LEAST_RELIEF * ranks.rank_load.mean()
    home, first = cluster.node_of_rank[busiest], busiest * slots
    weight = np.empty(slots)
    for place in range(slots):
        weight[place] = ranks.load[ranks.phy2log[first + place]] * ranks.shares[ranks.phy2log[first + place], home]
    best, best_own, best_slot = 0.0, -1, -1
    for rank in range(rank_load.shape[0]):
        gap, node = rank_load[busiest] - rank_load[rank], cluster.node_of_rank[rank]
        if rank == busiest or 0.5 * gap < least:
            continue
        for slot in range(rank * slots, (rank + 1) * slots):
            theirs = ranks.phy2log[slot]
            lighter = ranks.load[theirs] * ranks.shares[theirs, node]
            if node != home and not movable[theirs]:
                continue
            for place in range(slots):
                relief = min(weight[place] - lighter, gap - (weight[place] - lighter))
                if relief < least:
                    continue
                value, mine = price * relief, ranks.phy2log[first + place]
                if node != home:
                    here, there = swap_changes(visits, mine, theirs)
                    value -= here + there
                    if not movable[mine]:
                        continue
                if value <= best * LEAST_COST:
                    continue
                cost = swap_receipts(ranks, cluster, first + place, slot)
                value /= max(cost, LEAST_COST)
                if cost <= budget and value > best and may_take(ranks, rank, mine) and may_take(ranks, busiest, theirs):
                    best, best_own, best_slot = value, first + place, slot
    return best, best_own, best_slot


@kernel
def _peak_after(ranks: Ranks, cluster: Cluster, expert: int, victim: int, slot: int, grown: Array) -> float:
    """Heaviest rank with either expert after `slot` went from `victim` to `expert`, whose shares will be `grown`."""
    target = slot // cluster.slots_per_rank
    ranks.copies[victim, cluster.node_of_rank[target]] -= 1
    shrunk = expert_shares(ranks.copies[victim], victim, cluster)
    ranks.copies[victim, cluster.node_of_rank[target]] += 1
    peak = 0.0
    for rank in range(ranks.held.shape[0]):
        mine, theirs = ranks.held[rank, expert], ranks.held[rank, victim]
        if mine == 0 and theirs == 0:
            continue
        node, here = cluster.node_of_rank[rank], 1 if rank == target else 0
        change = ranks.load[expert] * ((mine + here) * grown[node] - mine * ranks.shares[expert, node])
        change += ranks.load[victim] * ((theirs - here) * shrunk[node] - theirs * ranks.shares[victim, node])
        peak = max(peak, ranks.rank_load[rank] + change)
    return peak


class Worth(NamedTuple):
    """saved, lost: [E, nodes] crossings that a copy more or less is worth; is_replicated: [E], kept up to date."""

    saved: Array
    lost: Array
    is_replicated: Array


@kernel
def _best_overwrite(
    busiest: int, budget: int, ranks: Ranks, cluster: Cluster, worth: Worth, price: float, enough: float
) -> tuple[float, int, int]:
    """Like `_best_swap`, for one more copy of an expert of the busiest rank in another rank's redundant slot.

    enough: value that another move has, so that none below it is looked for.
    """
    slots, rank_load, least = cluster.slots_per_rank, ranks.rank_load, LEAST_RELIEF * ranks.rank_load.mean()
    home, top = cluster.node_of_rank[busiest], ranks.rank_load[busiest]
    best, best_own, best_slot = enough, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        expert, grown_for = ranks.phy2log[own], -1
        grown = ranks.shares[expert]
        for rank in range(rank_load.shape[0]):
            if rank == busiest or not may_take(ranks, rank, expert):
                continue
            node = cluster.node_of_rank[rank]
            if grown_for != node:
                ranks.copies[expert, node] += 1
                grown, grown_for = expert_shares(ranks.copies[expert], expert, cluster), node
                ranks.copies[expert, node] -= 1
            # what it can relieve at best: the busiest rank's own copy serves less, and the other rank stays below
            at_best = ranks.load[expert] * (ranks.shares[expert, home] - grown[home])
            for slot in range(rank * slots, (rank + 1) * slots if at_best >= least else rank * slots):
                victim = ranks.phy2log[slot]
                if expert == victim or not worth.is_replicated[victim]:
                    continue
                after = rank_load[rank] + ranks.load[expert] * grown[node]
                after -= ranks.load[victim] * ranks.shares[victim, node]
                relief, bonus = min(at_best, top - after), worth.saved[expert, node] - worth.lost[victim, node]
                cost = receipt(ranks.held, ranks.before, rank, expert, victim)
                if relief < least or cost > budget or price * relief + bonus <= best * max(cost, LEAST_COST):
                    continue
                relief = top - _peak_after(ranks, cluster, expert, victim, slot, grown)
                value = (price * relief + bonus) / max(cost, LEAST_COST)
                if relief >= least and value > best:
                    best, best_own, best_slot = value, own, slot
    return best, best_own, best_slot


def repair(
    load: Array, phy2log: Array, before: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int
) -> None:
    """Change `phy2log: [P]`, in place, until no rank exceeds the mean by more than `peak_ratio` or no move pays.

    before: [ranks, E] what every rank held when moves began to count; budget: most moved slots.
    """
    ranks = open_ranks(load, phy2log, before, cluster)
    if ranks.rank_load.max() > mean_load(ranks) * peak_ratio:
        movable, visits = open_singles(ranks, cluster, tokens)
        relieve(ranks, cluster, tokens, movable, visits, peak_ratio, budget)


@kernel
def relieve(
    ranks: Ranks, cluster: Cluster, tokens: Tokens, movable: Array, visits: Visits, peak_ratio: float, budget: int
) -> int:
    """`repair` of what is open already; returns how many copies it has overwritten, which `visits` know nothing of."""
    mean, written, aware = ranks.rank_load.mean(), 0, tokens.rows.shape[0] > 0
    bound = mean * peak_ratio
    if ranks.rank_load.max() <= bound:
        return 0
    # a replicated expert stays on its nodes, unless neither shares nor crossings depend on where its copies lie
    if not aware and not cluster.nearest:
        movable[:] = True
    saved, lost = copy_values(ranks.copies, cluster, tokens)
    worth = Worth(saved, lost, ranks.copies.sum(axis=1) > 1)
    price, left = RELIEF_PRICE * max(tokens.rows.shape[0], 1) / mean, budget - received(ranks.held, ranks.before)
    for _ in range(4 * ranks.phy2log.shape[0]):
        busiest = int(np.argmax(ranks.rank_load))
        if ranks.rank_load[busiest] <= bound:
            break
        swap_value, own, other = _best_swap(busiest, left, ranks, cluster, movable, visits, price)
        _, source, slot = _best_overwrite(busiest, left, ranks, cluster, worth, price, swap_value)
        if own < 0 and slot < 0:
            break
        if slot < 0:
            mine, theirs = ranks.phy2log[own], ranks.phy2log[other]
            if aware and visits.node_of[mine] != visits.node_of[theirs] and movable[mine] and movable[theirs]:
                swap_experts(visits, mine, theirs)
            left -= swap_receipts(ranks, cluster, own, other)
            swap_slots(ranks, cluster, own, other)
        else:
            if aware or cluster.nearest:
                movable[ranks.phy2log[source]] = False  # it has two copies now
            victim = ranks.phy2log[slot]
            rank, expert = slot // cluster.slots_per_rank, ranks.phy2log[source]
            left -= receipt(ranks.held, ranks.before, rank, expert, victim)
            write_slot(ranks, cluster, slot, ranks.phy2log[source])
            worth.is_replicated[ranks.phy2log[slot]] = True
            worth.is_replicated[victim] = ranks.copies[victim].sum() > 1
            written += 1
    return written
