"""How many of a step's selections every replica serves: integer quotas that make the busiest rank as light as can be.

Replicated experts are visited in turn (Gauss-Seidel over experts): each spreads its selections over its replicas' ranks
up to a common level, but a node keeps those that wish to stay there as far as its ranks stay below a bound. The bound
falls after the first sweep, so that late ones need not undo what it sent away. Where two ranks differ by one selection,
a hash of the sweep says which of them carries it: the odd one wanders from rank to rank until it meets one that lacks
one. All numbers are integers and the order is fixed: ranks with equal counts get equal quotas. A linear program, as in
DeepSeek's and SGLang's LPLB, balances the same without wishes, in fractions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...jit import Array, kernel
from ..cover import mixed
from .replicas import Replicas

FALLING = (8,)  # 64ths above the goal, of the first sweeps
COLOUR_STEPS = 40  # at most, unless colours are many: few leave time for more sweeps
LEAST_SWEEPS, MOST_SWEEPS = 3, 12
FINEST = 1024  # a tolerance is a whole number of these parts


def bounds_above(colours: int) -> NDArray[np.int32]:
    """64ths above the goal, sweep by sweep."""
    sweeps = min(max(COLOUR_STEPS // max(colours, 1) - 1, LEAST_SWEEPS), MOST_SWEEPS)  # 1: see the end of `solve`
    return np.array([*FALLING, *[0] * (sweeps - len(FALLING))], np.int32)


class Served(NamedTuple):
    """load: [ranks] selections; quota: [S] of every replica."""

    load: Array
    quota: Array


@kernel
def equal_quotas(replicas: Replicas, total: Array) -> Array:
    """[S] int32: every expert's selections in equal parts, the first replicas one more."""
    quota = np.empty(replicas.slot.shape[0], np.int32)
    for row in range(total.shape[0]):
        first, last = replicas.start[row], replicas.start[row + 1]
        for place in range(first, last):
            quota[place] = total[row] // (last - first) + (1 if place - first < total[row] % (last - first) else 0)
    return quota


@kernel
def solve(replicas: Replicas, wished: Array, total: Array, base: Array, tolerance: int, above: Array) -> Array:
    """[S] int32 quotas; an expert's replicas sum to its total.

    wished: [M, nodes] selections that would like to be served on a node; total: [M] all of an expert's; base: [ranks]
    selections of experts on one rank only; tolerance: 1024ths by which ranks may exceed the goal where that keeps
    wishes; above: 64ths above the goal in every sweep (`bounds_above`).
    """
    quota = equal_quotas(replicas, total)
    load = base.copy()
    for place in range(quota.shape[0]):
        load[replicas.rank[place]] += quota[place]
    whole = np.int64(0)
    for rank in range(load.shape[0]):
        whole += load[rank]
    goal = max(int((whole + load.shape[0] - 1) // load.shape[0]), int(base.max()))
    goal += goal * tolerance // FINEST
    for sweep in range(above.shape[0]):
        _sweep(replicas, wished, total, goal + goal * above[sweep] // 64, sweep, Served(load, quota))
    peak = int(load.max())
    if peak > goal:  # it cannot be reached: what fits below the peak may as well stay where it wishes to be
        _sweep(replicas, wished, total, peak + peak * tolerance // FINEST, above.shape[0], Served(load, quota))
    return quota


@kernel
def _sweep(replicas: Replicas, wished: Array, total: Array, bound: int, sweep: int, served: Served) -> None:
    """Every replicated expert once, in the order of colours; `served` in place."""
    most = 0
    for row in range(total.shape[0]):
        most = max(most, replicas.start[row + 1] - replicas.start[row])
    others, mine, kept = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    for row in range(total.shape[0]):
        first, last, late = replicas.start[row], replicas.start[row + 1], mixed(row, sweep) & 1
        for place in range(first, last):
            others[place - first] = served.load[replicas.rank[place]] - served.quota[place]
        if last - first == 2:
            node, far = replicas.node[first], replicas.node[first + 1]
            keeps = lets = 0
            if node != far:
                keeps, lets = (
                    min(wished[row, node], max(bound - others[0], 0)),
                    min(wished[row, far], max(bound - others[1], 0)),
                )
            mine[0] = first_of_two(others[1] - others[0], total[row], keeps, lets, late)
            mine[1] = total[row] - mine[0]
        else:
            keep_wishes(others[: last - first], replicas.node[first:last], wished[row], bound, kept)
            spread(others[: last - first], replicas.node[first:last], total[row], late, kept, mine)
        for place in range(first, last):
            served.load[replicas.rank[place]] += mine[place - first] - served.quota[place]
            served.quota[place] = mine[place - first]


@kernel
def first_of_two(heavier: int, total: int, keeps: int, lets: int, late: int) -> int:
    """What `spread` gives the first of two replicas. heavier: by how much the other one's rank is without the expert;
    keeps, lets: what the first and the other one's node keep, if they are two."""
    return min(max(min(max((total + heavier + 1 - late) >> 1, 0), total), keeps), total - lets)


@kernel
def run_end(node: Array, first: int) -> int:
    """Where the run of equal nodes that begins at `first` ends."""
    last = first + 1
    while last < node.shape[0] and node[last] == node[first]:
        last += 1
    return last


@kernel
def keep_wishes(others: Array, node: Array, wished: Array, bound: int, kept: Array) -> None:
    """kept: [C], filled at a node's first replica: wishes for it, as far as its ranks stay at or below `bound`.

    others: [C] loads of the replicas' ranks without the expert; node: [C], equal ones side by side.
    """
    first = 0
    while first < others.shape[0]:
        last, room = run_end(node, first), np.int64(0)
        for place in range(first, last):
            room += max(bound - others[place], 0)
        kept[first] = min(np.int64(wished[node[first]]), room)
        first = last


@kernel
def spread(others: Array, node: Array, total: int, late: int, kept: Array, mine: Array) -> None:
    """One expert's selections over its replicas, mine: [C]: ranks are filled up to one level, but a node has what it
    keeps in any case. What then remains goes to the lightest ranks, one each; late: among equal ones to the last."""
    level, left, first = _common_level(others, node, total, kept), np.int64(total), 0
    while first < others.shape[0]:
        last, here = run_end(node, first), np.int64(0)
        for place in range(first, last):
            mine[place] = max(level - others[place], 0)
            here += mine[place]
        if here < kept[first]:  # this node keeps more than the level would give it
            _fill(others[first:last], kept[first], mine[first:last])
            here = kept[first]
        left -= here
        first = last
    while left > 0:  # less than one for every replica
        lightest = 0
        for place in range(1, others.shape[0]):
            here, least = others[place] + mine[place], others[lightest] + mine[lightest]
            if here < least or (late and here == least):
                lightest = place
        mine[lightest] += 1
        left -= 1


@kernel
def _common_level(others: Array, node: Array, total: int, kept: Array) -> int:
    """The highest level at which ranks filled up to it, and what nodes keep beyond it, take no more than `total`.

    Newton's method from above; the amount is convex in the level, so that it never falls below the answer.
    """
    count = others.shape[0]
    level = others.max() + (total + count - 1) // count
    while True:
        amount, slope, first = np.int64(0), np.int64(0), 0
        while first < count:
            last, here, rising = run_end(node, first), np.int64(0), np.int64(0)
            for place in range(first, last):
                if others[place] < level:
                    here += level - others[place]
                    rising += 1
            if here > kept[first]:
                amount += here
                slope += rising
            else:
                amount += kept[first]
            first = last
        if amount <= total:
            return level
        level -= (amount - total + slope - 1) // slope


@kernel
def _fill(others: Array, amount: int, mine: Array) -> None:
    """`amount` selections over ranks that carry `others`: [C] -> mine: [C], up to one level; first ones one more."""
    count = others.shape[0]
    level = others.max() + (amount + count - 1) // count
    while True:
        left, rising = np.int64(amount), np.int64(0)
        for place in range(count):
            if others[place] < level:
                left -= level - others[place]
                rising += 1
        if left >= 0:
            break
        level -= (rising - left - 1) // rising
    for place in range(count):
        mine[place] = max(level - others[place], 0)
        if left > 0 and others[place] <= level:
            mine[place] += 1
            left -= 1
