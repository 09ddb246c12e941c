"""Replicas to ranks: equally many on each, the busiest rank as light as possible, no expert twice on a rank.

Longest-first greedy, then swaps between the busiest rank and any other while they lower it. Loads are whole numbers
here: sums are exact, and the lightest rank is the least of one number per rank, which compilers turn into vector code.
"""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ...limits import MOST_RANKS
from ..balanced.moves import even_out
from ..deepseek import solve_global
from ..replicas.counts import apportion, copy_limit, list_copies

STOP = 0.001  # a busiest rank this close to the mean is left alone
POOR = 1.02  # a peak this far above the mean, and above the heaviest copy, is worth another search
LEAST = 1e-5  # of the mean rank load: a swap that lowers the busiest rank by less is not worth the search
ROUNDING = 1e-9
WHOLE = 2.0**40  # the load of all ranks together, in whole numbers
RANK_BITS = MOST_RANKS.bit_length() - 1  # of a key: load and rank in one number, so that equal loads go by rank
CLOSED = 1 << 60  # on a rank's key: it takes nothing (more)


@kernel
def _holds(who: Array, rank: int, filled: int, expert: int) -> bool:
    for position in range(filled):  # noqa: SIM110 - a kernel
        if who[rank, position] == expert:
            return True
    return False


@kernel
def _lightest(key: Array) -> int:
    """Least of all keys (a plain minimum, which is vector code, and tells the rank as well)."""
    least = key[0]
    for rank in range(1, key.shape[0]):
        least = min(least, key[rank])
    return least


@kernel
def _heaviest(key: Array) -> int:
    """Rank with the largest key."""
    largest = key[0]
    for rank in range(1, key.shape[0]):
        largest = max(largest, key[rank])
    return largest & ((1 << RANK_BITS) - 1)


@kernel
def _open_rank(key: Array, who: Array, filled: Array, expert: int) -> int:
    """Lightest rank with room and without the expert; if there is none, the lightest with room as -1 - rank."""
    ranks = key.shape[0]
    fallback, passed = -1, 0
    chosen = -1
    while chosen < 0:
        least = _lightest(key)
        if least >= CLOSED:
            break
        rank = least & ((1 << RANK_BITS) - 1)
        if not _holds(who, rank, filled[rank], expert):
            chosen = rank
            break
        if fallback < 0:
            fallback = rank
        key[rank] += 2 * CLOSED  # passed over for this expert only
        passed += 1
    if passed > 0:
        for rank in range(ranks):
            if key[rank] >= 2 * CLOSED:
                key[rank] -= 2 * CLOSED
    return chosen if chosen >= 0 else -1 - fallback


@kernel
def _make_way(rank: int, expert: int, who: Array, filled: Array) -> tuple[int, int]:
    """A (full rank, position) without `expert` whose item there may go to `rank` instead; (-1, -1) if none."""
    for other in range(who.shape[0]):
        if not _holds(who, other, filled[other], expert):
            for position in range(filled[other] - 1, -1, -1):
                if not _holds(who, rank, filled[rank], who[other, position]):
                    return other, position
    return -1, -1


@kernel
def _greedy(expert: Array, weight: Array, order: Array, who: Array, part: Array, load: Array) -> None:
    """Fill `who` (experts) and `part` (their weights), both [ranks, slots], and `load` [ranks]."""
    ranks, slots = who.shape
    filled, key = np.ones(ranks, np.int64), np.arange(ranks)
    for rank in range(ranks):  # as long as there are empty ranks
        who[rank, 0], part[rank, 0] = expert[order[rank]], weight[order[rank]]
        load[rank] = part[rank, 0]
        key[rank] += (load[rank] << RANK_BITS) + (CLOSED if slots == 1 else 0)
    for item in order[ranks:]:
        rank, mine, heavy = _open_rank(key, who, filled, expert[item]), expert[item], weight[item]
        if rank < 0:  # only ranks that hold this expert have room: let another rank's item go there
            rank = -1 - rank
            other, position = _make_way(rank, mine, who, filled)
            if other >= 0:
                shift = heavy - part[other, position]
                mine, who[other, position] = who[other, position], mine
                heavy, part[other, position] = part[other, position], heavy
                load[other] += shift
                key[other] += shift << RANK_BITS
        who[rank, filled[rank]], part[rank, filled[rank]] = mine, heavy
        filled[rank] += 1
        load[rank] += heavy
        key[rank] += heavy << RANK_BITS
        if filled[rank] == slots:
            key[rank] += CLOSED


@kernel
def _may_swap(who: Array, first: int, own: int, second: int, position: int) -> bool:
    slots = who.shape[1]
    return not (_holds(who, second, slots, who[first, own]) or _holds(who, first, slots, who[second, position]))


@kernel
def _fitting_swap(busiest: int, who: Array, part: Array, load: Array, bound: int) -> tuple[int, int, int]:
    """(rank, own position, its position) of the first swap that leaves both ranks within the bound; -1 if none."""
    ranks, slots = who.shape
    least = load[busiest] - bound
    for rank in range(ranks):
        if rank == busiest:
            continue
        most = bound - load[rank]
        if most < least:
            continue
        for own in range(slots):
            high, low = part[busiest, own] - least, part[busiest, own] - most
            for position in range(slots):
                theirs = part[rank, position]
                if low <= theirs <= high and _may_swap(who, busiest, own, rank, position):
                    return rank, own, position
    return -1, -1, -1


@kernel
def _best_swap(busiest: int, who: Array, part: Array, load: Array, least: int) -> tuple[int, int, int]:
    """Like `_fitting_swap`: the swap that leaves the pair's heavier rank lightest, by `least` or more."""
    ranks, slots = who.shape
    top = load[busiest]
    relief, chosen, own_at, other_at = least - 1, -1, -1, -1
    for rank in range(ranks):
        gap = top - load[rank]
        if gap <= 2 * relief:
            continue
        for own in range(slots):
            for position in range(slots):
                shift = part[busiest, own] - part[rank, position]
                if relief < shift < gap - relief and _may_swap(who, busiest, own, rank, position):
                    relief, chosen, own_at, other_at = min(shift, gap - shift), rank, own, position
    return chosen, own_at, other_at


@kernel
def _descend(who: Array, part: Array, load: Array) -> None:
    mean = load.sum() / load.shape[0]
    bound, least = int(mean * (1.0 + STOP)), int(mean * LEAST) + 1
    key = np.empty(load.shape[0], np.int64)
    for rank in range(load.shape[0]):
        key[rank] = (load[rank] << RANK_BITS) + rank
    for _ in range(64 * load.shape[0]):
        busiest = _heaviest(key)
        if load[busiest] <= bound:
            break
        rank, own, position = _fitting_swap(busiest, who, part, load, bound)
        if rank < 0:
            rank, own, position = _best_swap(busiest, who, part, load, least)
        if rank < 0:
            break
        shift = part[busiest, own] - part[rank, position]
        who[busiest, own], who[rank, position] = who[rank, position], who[busiest, own]
        part[busiest, own], part[rank, position] = part[rank, position], part[busiest, own]
        load[busiest] -= shift
        load[rank] += shift
        key[busiest] -= shift << RANK_BITS
        key[rank] += shift << RANK_BITS


@kernel
def pack(expert: Array, weight: Array, num_ranks: int) -> Array:
    """expert, weight: [items], a multiple of the ranks -> [ranks, items per rank] int32 experts of every rank."""
    slots = expert.shape[0] // num_ranks
    total = weight.sum()
    scale = WHOLE / num_ranks / total if total > 0.0 else 0.0
    whole = np.empty(weight.shape[0], np.int64)
    for item in range(weight.shape[0]):
        whole[item] = int(weight[item] * scale + 0.5)
    who, part = np.empty((num_ranks, slots), np.int32), np.zeros((num_ranks, slots), np.int64)
    load = np.zeros(num_ranks, np.int64)
    _greedy(expert, whole, np.argsort(-weight, kind="mergesort"), who, part, load)  # stable
    if slots > 1:
        _descend(who, part, load)
    return who


@kernel
def write_row(target: Array, row: int, source: Array) -> None:
    """target[row] = source; slices bring in code that formats error messages, which takes seconds to compile."""
    for column in range(source.shape[0]):
        target[row, column] = source[column]


@kernel
def rank_peak(load: Array, phy2log: Array, slots: int) -> float:
    """Load of the busiest rank."""
    copies, peak, here = np.zeros(load.shape[0], np.int64), 0.0, 0.0
    for expert in phy2log:
        copies[expert] += 1
    for slot in range(phy2log.shape[0]):
        here += load[phy2log[slot]] / copies[phy2log[slot]]
        if slot % slots == slots - 1:
            peak, here = max(peak, here), 0.0
    return peak


@kernel
def _least_peak(load: Array, copies: Array, weight: Array, slots: int, limit: int) -> float:
    """A busiest rank that vanilla cannot get below; 0.0 if its copy counts may differ. weight: [P] of all copies."""
    last = np.inf  # load per copy at which the last copy was given
    for expert in range(load.shape[0]):
        if copies[expert] >= limit:
            return 0.0
        if copies[expert] > 1:
            last = min(last, load[expert] / (copies[expert] - 1))
    for expert in range(load.shape[0]):
        if load[expert] / copies[expert] == last:
            return 0.0
    order, items, peak = np.argsort(-weight, kind="mergesort"), weight.shape[0], 0.0
    if slots == 2:  # the heaviest with the lightest, the second with the second …
        for item in range(items // 2):
            peak = max(peak, weight[order[item]] + weight[order[items - 1 - item]])
        return peak
    for item in range(items - slots + 1, items):
        peak += weight[order[item]]
    return peak + weight[order[0]]


@kernel
def _improve(load: Array, phy2log: Array, copies: Array, weight: Array, num_ranks: int, peak: float) -> Array:
    """Where packing leaves ranks uneven: with other copy counts (few experts, or few slots on a rank), and by vanilla's
    packing, which may put two copies on one rank. phy2log: [P], what was packed, of copies: [E] and weight: [P]; peak:
    what came of it.
    """
    num_slots, slots = phy2log.shape[0], phy2log.shape[0] // num_ranks
    if peak > max(weight.sum() / num_ranks * POOR, weight.max() * POOR):
        even_out(load, phy2log, np.zeros(num_ranks, np.int32), slots, 1.0 + STOP, num_slots * num_slots)
        peak = rank_peak(load, phy2log, slots)
    limit = copy_limit(load.shape[0], num_slots, num_ranks)
    if peak > _least_peak(load, copies, weight, slots, limit) * (1.0 + ROUNDING):
        vanilla = solve_global(load, num_slots, num_ranks)
        if rank_peak(load, vanilla, slots) < peak:
            return vanilla
    return phy2log


@kernel
def solve_balanced(load: Array, num_slots: int, num_ranks: int) -> Array:
    """load: [L, E] float64 -> phy2log [L, P] int32 for the best balance under an even split over copies; never a
    busier rank than vanilla's global policy, unless both are within `STOP` of even.
    """
    layers, experts = load.shape
    phy2log = np.empty((layers, num_slots), np.int32)
    limit = copy_limit(experts, num_slots, num_ranks)
    for layer in range(layers):
        copies = apportion(load[layer], num_slots, limit)
        items = list_copies(copies)
        weight = np.empty(num_slots)
        for slot in range(num_slots):
            weight[slot] = load[layer, items[slot]] / copies[items[slot]]
        packed = pack(items, weight, num_ranks).ravel()
        peak = rank_peak(load[layer], packed, num_slots // num_ranks)
        if peak > weight.sum() / num_ranks * (1.0 + STOP):
            packed = _improve(load[layer], packed, copies, weight, num_ranks, peak)
        write_row(phy2log, layer, packed)
    return phy2log
