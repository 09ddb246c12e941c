"""Lower the busiest rank by few moves, each worth its weights and, where tokens are known, its crossings.

A move is a swap of two slots, or a redundant copy overwritten by a copy of an expert of the busiest rank. Moves are
counted as `score.moved_slots` counts them: weights that a rank must receive, against where the placement started.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .crossings import Cluster, copy_values, expert_shares, fixed_pins
from .ranks import Ranks, may_take, open_ranks, receipts, received, swap_receipts, swap_slots, write_slot
from .tokens import Tokens
from .visits import Visits, open_visits, swap_experts, swap_gain

NO_LIMIT = 1 << 30
RELIEF_PRICE = 0.3  # crossings per token that a relief of one mean rank load is worth
LEAST_RELIEF = 1e-4  # of a mean rank load
LEAST_COST = 0.5  # of a move that needs no weight, because it undoes another


@kernel
def open_singles(ranks: Ranks, cluster: Cluster, tokens: Tokens) -> tuple[Array, Visits]:
    """[E] bool experts with one copy, and what tokens visit because of them."""
    experts = ranks.load.shape[0]
    singles, pins = fixed_pins(ranks.copies, cluster, tokens)
    node_of = np.empty(experts, np.int32)
    for expert in range(experts):
        node_of[expert] = np.argmax(ranks.copies[expert])
    return ranks.copies.sum(axis=1) == 1, open_visits(singles, pins, node_of)


@kernel
def _best_swap(
    busiest: int, budget: int, ranks: Ranks, cluster: Cluster, movable: Array, visits: Visits, price: float
) -> tuple[float, int, int]:
    """(value per received weight, slot of the busiest rank, other slot); value 0 if no swap relieves it.

    price: crossings that the relief of one unit of load is worth; movable: [E] experts that may change node.
    """
    slots, rank_load, mean = cluster.slots_per_rank, ranks.rank_load, ranks.rank_load.mean()
    home, top = cluster.node_of_rank[busiest], ranks.rank_load[busiest]
    best, best_own, best_slot = 0.0, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        mine = ranks.phy2log[own]
        weight = ranks.load[mine] * ranks.shares[mine, home]
        for slot in range(ranks.phy2log.shape[0]):
            rank, theirs = slot // slots, ranks.phy2log[slot]
            node = cluster.node_of_rank[rank]
            shift = weight - ranks.load[theirs] * ranks.shares[theirs, node]
            relief = min(shift, top - rank_load[rank] - shift)
            if relief < LEAST_RELIEF * mean:
                continue
            value = price * relief
            if node != home:
                if not (movable[mine] and movable[theirs]):
                    continue
                value += swap_gain(visits, mine, theirs)
            if value <= best * LEAST_COST or not (may_take(ranks, rank, mine) and may_take(ranks, busiest, theirs)):
                continue
            cost = swap_receipts(ranks, cluster, own, slot)
            value /= max(cost, LEAST_COST)
            if cost <= budget and value > best:
                best, best_own, best_slot = value, own, slot
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


@kernel
def _best_overwrite(
    busiest: int, budget: int, ranks: Ranks, cluster: Cluster, saved: Array, lost: Array, price: float
) -> tuple[float, int, int]:
    """Like `_best_swap`, for one more copy of an expert of the busiest rank in another rank's redundant slot.

    saved, lost: [E, nodes] crossings that a copy more or less is worth.
    """
    slots, rank_load, mean = cluster.slots_per_rank, ranks.rank_load, ranks.rank_load.mean()
    home, top = cluster.node_of_rank[busiest], ranks.rank_load[busiest]
    total = ranks.copies.sum(axis=1)
    best, best_own, best_slot = 0.0, -1, -1
    for own in range(busiest * slots, (busiest + 1) * slots):
        expert, grown_for = ranks.phy2log[own], -1
        grown = ranks.shares[expert]
        for slot in range(ranks.phy2log.shape[0]):
            rank, victim = slot // slots, ranks.phy2log[slot]
            node = cluster.node_of_rank[rank]
            if rank == busiest or expert == victim or total[victim] < 2 or not may_take(ranks, rank, expert):
                continue
            if grown_for != node:
                ranks.copies[expert, node] += 1
                grown, grown_for = expert_shares(ranks.copies[expert], expert, cluster), node
                ranks.copies[expert, node] -= 1
            # what it can relieve at best: the busiest rank's own copy serves less, and the other rank stays below
            relief = ranks.load[expert] * (ranks.shares[expert, home] - grown[home])
            after = rank_load[rank] + ranks.load[expert] * grown[node] - ranks.load[victim] * ranks.shares[victim, node]
            relief = min(relief, top - after)
            bonus = saved[expert, node] - lost[victim, node]
            if relief < LEAST_RELIEF * mean or price * relief + bonus <= best * LEAST_COST:
                continue
            relief = top - _peak_after(ranks, cluster, expert, victim, slot, grown)
            cost = receipts(ranks, rank, expert, victim)
            value = (price * relief + bonus) / max(cost, LEAST_COST)
            if relief >= LEAST_RELIEF * mean and cost <= budget and value > best:
                best, best_own, best_slot = value, own, slot
    return best, best_own, best_slot


@kernel
def repair(
    load: Array, phy2log: Array, before: Array, cluster: Cluster, tokens: Tokens, peak_ratio: float, budget: int
) -> None:
    """Change `phy2log: [P]`, in place, until no rank exceeds the mean by more than `peak_ratio` or no move pays.

    before: [ranks, E] what every rank held when moves began to count; budget: most moved slots.
    """
    ranks = open_ranks(load, phy2log, before, cluster)
    mean = ranks.rank_load.mean()
    bound = mean * peak_ratio
    if ranks.rank_load.max() <= bound:
        return
    aware = tokens.rows.shape[0] > 0
    movable, visits = open_singles(ranks, cluster, tokens)
    # a replicated expert stays on its nodes, unless neither shares nor crossings depend on where its copies lie
    if not aware and not cluster.nearest:
        movable[:] = True
    saved, lost = copy_values(ranks.copies, cluster, tokens)
    price = RELIEF_PRICE * max(tokens.rows.shape[0], 1) / mean
    for _ in range(4 * phy2log.shape[0]):
        busiest = int(np.argmax(ranks.rank_load))
        left = budget - received(ranks)
        if ranks.rank_load[busiest] <= bound:
            break
        swap_value, own, other = _best_swap(busiest, left, ranks, cluster, movable, visits, price)
        copy_value, source, slot = _best_overwrite(busiest, left, ranks, cluster, saved, lost, price)
        if swap_value <= 0.0 and copy_value <= 0.0:
            break
        if swap_value >= copy_value:
            mine, theirs = phy2log[own], phy2log[other]
            if aware and visits.node_of[mine] != visits.node_of[theirs] and movable[mine] and movable[theirs]:
                swap_experts(visits, mine, theirs)
            swap_slots(ranks, cluster, own, other)
        else:
            if aware or cluster.nearest:
                movable[phy2log[source]] = False  # it has two copies now
            write_slot(ranks, cluster, slot, phy2log[source])
