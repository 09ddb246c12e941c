"""Replicas given to other experts, so that quotas reach more: the one change here that tokens' ways notice.

Which experts affinity gives replicas is a matter of copies and of mean loads. An expert that is hot in some steps only,
on ranks that share nothing with the others then, gets none. A replica of it outside such a set of ranks lets load out
(see `swaps`); it takes the slot of a replica that is needed less. That changes the nodes of two experts, so it has to
be worth more than a swap.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ..moves.ranks import count_held, receipt, received
from ..traffic.fixed_rules import Cluster
from .peaks import peaks_of
from .swaps import EVEN, NEAR, arrange, keep_best

TRIES = 64  # replacements tried in full before they count as done
MOST_TRIES = 128  # in all, as many swaps before them …
MOST_WORK = 1 << 17  # … and of either, from then on, as fit in here, each steps × experts: large layers take long
WORTH = 0.0005  # share of the peaks that a replacement must save


@kernel
def arrange_replicas(phy2log: Array, loads: Array, cluster: Cluster, before: Array, budget: int, least: float) -> int:
    """As `arrange`, which it calls before and after the replacements; returns how often phy2log: [P] was changed."""
    swapped = arrange(phy2log, loads, cluster, before, budget, least, MOST_TRIES)
    tries = min(MOST_TRIES, MOST_WORK // loads.size)
    replaced = _replace(phy2log, loads, cluster, before, budget, least, tries)
    if replaced:
        swapped += arrange(phy2log, loads, cluster, before, budget, least, tries)
    return swapped + replaced


@kernel
def _replace(
    phy2log: Array, loads: Array, cluster: Cluster, before: Array, budget: int, least: float, tries: int
) -> int:
    ranks, slots, replaced = cluster.node_of_rank.shape[0], cluster.slots_per_rank, 0
    held = count_held(phy2log, cluster, loads.shape[1])
    left, listed = budget - received(held, before), np.empty((TRIES, 2), np.int64)
    now, then = np.empty((loads.shape[0], ranks)), np.empty((loads.shape[0], ranks))
    peaks, even = peaks_of(phy2log, loads, slots, np.inf, now), (1.0 + EVEN) * loads.sum() / ranks
    improved = True
    while improved and tries > 0 and peaks > even:
        improved = False
        for place in range(_promising(phy2log, loads, held, now, slots, listed)):
            slot, expert = listed[place]
            rank, old = slot // slots, phy2log[slot]
            cost = receipt(held, before, rank, expert, old)
            if cost > left or tries == 0:
                continue
            phy2log[slot] = expert
            tries -= 1
            lower = peaks_of(phy2log, loads, slots, (1.0 - max(WORTH, least)) * peaks, then)
            if lower < np.inf:
                held[rank, old] -= 1
                held[rank, expert] += 1
                peaks, now, then, improved = lower, then, now, True
                left -= cost
                replaced += 1
                break
            phy2log[slot] = old
    return replaced


@kernel
def _promising(phy2log: Array, loads: Array, held: Array, rank_load: Array, slots: int, listed: Array) -> int:
    """listed: [TRIES, 2] a slot whose expert has others, and the expert that it would get; best first. Returns how many
    confine less to the busiest ranks, all steps added up. rank_load: [S, ranks].
    """
    gain, loss = _confined(phy2log, loads, held, rank_load, slots)
    copies = held.sum(axis=0)
    worth, found = np.zeros(listed.shape[0]), 0
    for slot in range(phy2log.shape[0]):
        rank = slot // slots
        if copies[phy2log[slot]] == 1:
            continue
        for expert in range(loads.shape[1]):
            value = loss[slot] - gain[rank, expert]
            if value >= (worth[found - 1] if found == listed.shape[0] else 0.0) or held[rank, expert]:
                continue
            found = keep_best(worth, listed, found, value, slot, expert)
    return found


@kernel
def _confined(phy2log: Array, loads: Array, held: Array, rank_load: Array, slots: int) -> tuple[Array, Array]:
    """What a replica on a rank lets out of the busiest ones, [ranks, E], and what is shut in without a slot, [P]."""
    ranks, experts = held.shape
    gain, loss = np.zeros((ranks, experts)), np.zeros(phy2log.shape[0])
    busiest = np.zeros(ranks, np.bool_)
    for step in range(loads.shape[0]):
        peak = rank_load[step].max()
        if peak <= (1.0 + EVEN) * rank_load[step].mean():
            continue
        busiest[:] = rank_load[step] >= (1.0 - NEAR) * peak
        for expert in range(experts):
            outside, inside, last = 0, 0, 0
            for rank in range(ranks):
                if busiest[rank]:
                    inside += held[rank, expert]
                elif held[rank, expert]:
                    outside, last = outside + held[rank, expert], rank
            worth = loads[step, expert] / busiest.sum()
            if not inside or worth == 0.0:
                continue
            if not outside:
                for rank in range(ranks):
                    if not busiest[rank]:
                        gain[rank, expert] += worth
            elif outside == 1:
                for slot in range(last * slots, (last + 1) * slots):
                    if phy2log[slot] == expert:
                        loss[slot] += worth
    return gain, loss
