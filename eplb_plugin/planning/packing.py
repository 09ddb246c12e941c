"""Replicas to ranks: equally many on each, the busiest rank as light as possible, no expert twice on a rank.

Longest-first greedy, then swaps between the busiest rank and any other while they lower it. Items are numbered by
descending weight, so that a rank's row of items is sorted and the scan for the best swap can stop early.
"""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel
from .replication import apportion, copy_limit, list_copies

STOP = 0.0005  # a busiest rank this close to the mean is left alone


@kernel
def _lightest_open(load: Array, filled: Array, slots: int, held: Array, expert: int) -> int:
    """Lightest rank with room and without the expert; if there is none, the lightest with room as -1 - rank."""
    without, any_rank = -1, -1
    for rank in range(load.shape[0]):
        if filled[rank] == slots:
            continue
        if any_rank < 0 or load[rank] < load[any_rank]:
            any_rank = rank
        if held[rank, expert] == 0 and (without < 0 or load[rank] < load[without]):
            without = rank
    return without if without >= 0 else -1 - any_rank


@kernel
def _make_way(
    rank: int, expert: int, item_expert: Array, members: Array, filled: Array, held: Array
) -> tuple[int, int]:
    """A (full rank, position) without `expert` whose item there may go to `rank` instead; (-1, -1) if none."""
    for other in range(members.shape[0]):
        if held[other, expert] == 0:
            for position in range(filled[other] - 1, -1, -1):
                if held[rank, item_expert[members[other, position]]] == 0:
                    return other, position
    return -1, -1


@kernel
def _greedy(expert: Array, weight: Array, members: Array, load: Array, held: Array) -> None:
    ranks, slots = members.shape
    filled = np.zeros(ranks, np.int32)
    for item in range(expert.shape[0]):
        rank, placed = _lightest_open(load, filled, slots, held, expert[item]), item
        if rank < 0:  # only ranks that hold this expert have room: let another rank's item go there
            rank = -1 - rank
            other, position = _make_way(rank, expert[item], expert, members, filled, held)
            if other >= 0:
                placed = members[other, position]
                for later in range(position, filled[other] - 1):
                    members[other, later] = members[other, later + 1]
                members[other, filled[other] - 1] = item
                held[other, expert[placed]] -= 1
                held[other, expert[item]] += 1
                load[other] += weight[item] - weight[placed]
        at = filled[rank]
        while at > 0 and members[rank, at - 1] > placed:
            members[rank, at] = members[rank, at - 1]
            at -= 1
        members[rank, at] = placed
        filled[rank] += 1
        held[rank, expert[placed]] += 1
        load[rank] += weight[placed]


@kernel
def _best_swap(
    busiest: int, expert: Array, weight: Array, members: Array, load: Array, held: Array, good_enough: float
) -> tuple[int, int, int]:
    """(rank, own position, its position) of the swap that leaves the pair's heavier rank lightest; -1 if none helps."""
    ranks, slots = members.shape
    top = load[busiest]
    best, chosen, own_at, other_at = top * (1.0 - 1e-9), -1, -1, -1
    for rank in range(ranks):
        low = load[rank]
        if rank == busiest or 0.5 * (top + low) >= best:
            continue
        for own in range(slots):
            mine = members[busiest, own]
            for position in range(slots):
                theirs = members[rank, position]
                shift = weight[mine] - weight[theirs]
                if shift <= 0.0:
                    continue
                peak = max(top - shift, low + shift)
                beyond = 2.0 * shift > top - low
                if peak >= best:
                    if beyond:
                        break
                    continue
                if held[rank, expert[mine]] == 0 and held[busiest, expert[theirs]] == 0:
                    best, chosen, own_at, other_at = peak, rank, own, position
                    if beyond:
                        break
        if best <= good_enough:
            break
    return chosen, own_at, other_at


@kernel
def _replace(row: Array, position: int, item: int) -> None:
    """Put `item` in place of the one at `position` and keep the row ascending."""
    while position + 1 < row.shape[0] and row[position + 1] < item:
        row[position] = row[position + 1]
        position += 1
    while position > 0 and row[position - 1] > item:
        row[position] = row[position - 1]
        position -= 1
    row[position] = item


@kernel
def _descend(expert: Array, weight: Array, members: Array, load: Array, held: Array) -> None:
    mean = load.sum() / load.shape[0]
    for _ in range(64 * load.shape[0]):
        busiest = int(np.argmax(load))
        if load[busiest] <= mean * (1.0 + STOP):
            break
        rank, own, position = _best_swap(busiest, expert, weight, members, load, held, mean * (1.0 + STOP))
        if rank < 0:
            break
        mine, theirs = members[busiest, own], members[rank, position]
        _replace(members[busiest], own, theirs)
        _replace(members[rank], position, mine)
        load[busiest] += weight[theirs] - weight[mine]
        load[rank] += weight[mine] - weight[theirs]
        held[busiest, expert[mine]] -= 1
        held[busiest, expert[theirs]] += 1
        held[rank, expert[theirs]] -= 1
        held[rank, expert[mine]] += 1


@kernel
def pack(expert: Array, weight: Array, num_ranks: int, num_experts: int) -> Array:
    """expert, weight: [items], a multiple of the ranks -> [ranks, items per rank] int32 experts of every rank."""
    order = np.argsort(-weight, kind="mergesort")
    expert, weight = expert[order], weight[order]
    members = np.empty((num_ranks, expert.shape[0] // num_ranks), np.int32)
    load = np.zeros(num_ranks)
    held = np.zeros((num_ranks, num_experts), np.int16)
    _greedy(expert, weight, members, load, held)
    _descend(expert, weight, members, load, held)
    for rank in range(num_ranks):
        for position in range(members.shape[1]):
            members[rank, position] = expert[members[rank, position]]
    return members


@kernel
def solve_balanced(load: Array, num_slots: int, num_ranks: int) -> Array:
    """load: [E] float64 -> phy2log [P] int32 for the best balance under an even split over copies."""
    experts = load.shape[0]
    copies = apportion(load, num_slots, copy_limit(experts, num_slots, num_ranks))
    items = list_copies(copies)
    return pack(items, (load / copies)[items], num_ranks, experts).ravel()
