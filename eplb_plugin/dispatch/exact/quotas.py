"""How many of a step's selections every replica serves: integer quotas that make the busiest rank as light as can be.

Replicated experts are visited in turn (Gauss-Seidel over experts): each spreads its selections over its replicas' ranks
up to a common level, but a node keeps those that wish to stay there as far as its ranks stay below a bound. The bound
falls from sweep to sweep, so that late sweeps need not undo what early ones sent away. All numbers are integers and the
order is fixed: ranks with equal counts get equal quotas. A linear program (LPLB of DeepSeek and SGLang) balances the
same problem without wishes, in fractions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...jit import Array, kernel
from .replicas import Replicas

FALLING = (8, 4, 2)  # 64ths above the goal, of the first sweeps
COLOUR_STEPS = 40  # about as many in all: few colours leave time for more sweeps
FINEST = 1024  # a tolerance is a whole number of these parts


def bounds_above(colours: int) -> NDArray[np.int32]:
    """64ths above the goal, sweep by sweep."""
    last = min(max(COLOUR_STEPS // max(colours, 1) - len(FALLING) - 1, 2), 7)
    return np.array([*FALLING, *[0] * last], np.int32)


@kernel
def equal_quotas(replicas: Replicas, total: Array) -> Array:
    """[S] int32: every expert's selections in equal parts, the first replicas one more."""
    quota = np.zeros(replicas.slot.shape[0], np.int32)
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
    for share in above:
        _sweep(replicas, wished, total, goal + goal * share // 64, load, quota)
    peak = int(load.max())
    if peak > goal:  # it cannot be reached: what fits below the peak may as well stay where it wishes to be
        _sweep(replicas, wished, total, peak + peak * tolerance // FINEST, load, quota)
    return quota


@kernel
def _sweep(replicas: Replicas, wished: Array, total: Array, bound: int, load: Array, quota: Array) -> None:
    """Every replicated expert once, in the order of colours; load: [ranks] and quota: [S] in place."""
    most = 0
    for row in range(total.shape[0]):
        most = max(most, replicas.start[row + 1] - replicas.start[row])
    others, served, kept = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    for row in range(total.shape[0]):
        first, last = replicas.start[row], replicas.start[row + 1]
        for place in range(first, last):
            others[place - first] = load[replicas.rank[place]] - quota[place]
        if last - first == 2:
            served[0] = _first_of_two(
                others[0], others[1], replicas.node[first], replicas.node[first + 1], wished[row], total[row], bound
            )
            served[1] = total[row] - served[0]
        else:
            _spread(others[: last - first], replicas.node[first:last], wished[row], total[row], bound, kept, served)
        for place in range(first, last):
            load[replicas.rank[place]] += served[place - first] - quota[place]
            quota[place] = served[place - first]


@kernel
def _first_of_two(one: int, other: int, node: int, far: int, wished: Array, total: int, bound: int) -> int:
    """What `_spread` gives the first of two replicas on ranks that carry `one` and `other` without the expert."""
    first = min(max((total + other - one + 1) >> 1, 0), total)
    if node != far:
        keeps, lets = min(wished[node], max(bound - one, 0)), min(wished[far], max(bound - other, 0))
        first = min(max(first, keeps), total - lets)
    return first


@kernel
def run_end(node: Array, first: int) -> int:
    """Where the run of equal nodes that begins at `first` ends."""
    last = first + 1
    while last < node.shape[0] and node[last] == node[first]:
        last += 1
    return last


@kernel
def _spread(others: Array, node: Array, wished: Array, total: int, bound: int, kept: Array, served: Array) -> None:
    """One expert over its replicas. others: [C] loads of their ranks without it; node: [C], equal ones side by side;
    kept: [C] room to work in; served: [C] is filled.

    A node keeps what wishes to be there as far as its ranks stay at or below `bound`; all other selections fill the
    ranks up to one level, counting what nodes keep.
    """
    count, first = others.shape[0], 0
    while first < count:
        last, room = run_end(node, first), np.int64(0)
        for place in range(first, last):
            room += max(bound - others[place], 0)
        kept[first] = min(np.int64(wished[node[first]]), room)
        first = last
    level, left, first = _common_level(others, node, total, kept), np.int64(total), 0
    while first < count:
        last, here = run_end(node, first), np.int64(0)
        for place in range(first, last):
            served[place] = max(level - others[place], 0)
            here += served[place]
        if here < kept[first]:  # this node keeps more than the level would give it
            _fill(others[first:last], kept[first], served[first:last])
            here = kept[first]
        left -= here
        first = last
    while left > 0:  # less than one for every replica
        lowest = 0
        for place in range(1, count):
            if others[place] + served[place] < others[lowest] + served[lowest]:
                lowest = place
        served[lowest] += 1
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
def _fill(others: Array, amount: int, served: Array) -> None:
    """`amount` selections over ranks that carry `others`: [C] -> served: [C], up to one level; first ones one more."""
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
        served[place] = max(level - others[place], 0)
        if left > 0 and others[place] <= level:
            served[place] += 1
            left -= 1
