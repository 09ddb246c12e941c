"""Quotas and this rank's row in one Triton program: `quotas.solve` and `rows.row_of_source`, colour by colour.

Experts of a colour share no rank, so that lanes never meet. Between colours loads and quotas lie in the work buffers,
in the program's own cache; a barrier stands where another thread reads what one has written. Numbers are int32: a rank
must have fewer than 2²⁶ selections in a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..triton_kernels import mixed
from .quotas import COLOUR_STEPS, FALLING, FINEST, LEAST_SWEEPS, MOST_SWEEPS
from .tables import ExactLayer

PAIRS = 4096  # replicas by replicas of the experts whose row is made at once

FIRST_ABOVE, FINE = tl.constexpr(FALLING[0]), tl.constexpr(FINEST)
STEPS, LEAST, MOST = (tl.constexpr(number) for number in (COLOUR_STEPS, LEAST_SWEEPS, MOST_SWEEPS))


@triton.jit
def _add_sources(gathered, sources, source, payload, sums, earlier, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums, earlier: [payload], filled: of all sources, and of those before `source`."""
    for begin in range(0, payload, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        whole = tl.zeros([COLUMNS], tl.int32)
        before = tl.zeros([COLUMNS], tl.int32)
        for first in range(0, sources, ROWS):
            row = first + tl.arange(0, ROWS)
            there = (row[:, None] < sources) & (column[None, :] < payload)
            found = tl.load(gathered + row[:, None] * payload + column[None, :], mask=there, other=0)
            whole += tl.sum(found, axis=0)
            before += tl.sum(tl.where(row[:, None] < source, found, 0), axis=0)
        tl.store(sums + column, whole, mask=column < payload)
        tl.store(earlier + column, before, mask=column < payload)


@triton.jit
def _equal_quotas(experts, start, rank, sums, total, load, quota, WISHES: tl.constexpr, WIDE: tl.constexpr,
                  ROWS: tl.constexpr, COPIES: tl.constexpr):  # fmt: skip
    """total, quota: filled; load: added to."""
    for begin in range(0, experts, ROWS):
        row = begin + tl.arange(0, ROWS)
        there = row < experts
        wish = tl.arange(0, WIDE)[None, :]
        found = tl.load(sums + row[:, None] * WISHES + wish, mask=there[:, None] & (wish < WISHES), other=0)
        whole = tl.sum(found, axis=1)
        tl.store(total + row, whole, mask=there)
        first = tl.load(start + row, mask=there, other=0)
        count = tl.load(start + row + 1, mask=there, other=1) - first
        copy = tl.arange(0, COPIES)[None, :]
        place, valid = first[:, None] + copy, there[:, None] & (copy < count[:, None])
        part = (whole // count)[:, None] + (copy < (whole % count)[:, None]).to(tl.int32)
        tl.store(quota + place, part, mask=valid)
        tl.atomic_add(load + tl.load(rank + place, mask=valid, other=0), part, mask=valid, sem="relaxed")


@triton.jit
def _lanes_of_two(first, there, whole, late, bound, wished, rank, node, load, quota):
    """`quotas.first_of_two`, every lane an expert. first: [LANES] into replicas; wished: [LANES] pointers to its wishes
    by node; load, quota: in place."""
    one, other = tl.load(rank + first, mask=there, other=0), tl.load(rank + first + 1, mask=there, other=0)
    own, far = tl.load(node + first, mask=there, other=0), tl.load(node + first + 1, mask=there, other=0)
    left = tl.load(load + one, mask=there, other=0) - tl.load(quota + first, mask=there, other=0)
    right = tl.load(load + other, mask=there, other=0) - tl.load(quota + first + 1, mask=there, other=0)
    keeps = tl.minimum(tl.load(wished + own, mask=there & (own != far), other=0), tl.maximum(bound - left, 0))
    lets = tl.minimum(tl.load(wished + far, mask=there & (own != far), other=0), tl.maximum(bound - right, 0))
    mine = tl.minimum(tl.maximum((whole + right - left + 1 - late) >> 1, 0), whole)
    mine = tl.minimum(tl.maximum(mine, keeps), whole - lets)
    tl.store(quota + first, mine, mask=there)
    tl.store(quota + first + 1, whole - mine, mask=there)
    tl.store(load + one, left + mine, mask=there)
    tl.store(load + other, right + whole - mine, mask=there)


@triton.jit
def _lanes_of_many(first, count, whole, late, bound, wished, rank, node, load, quota, COPIES: tl.constexpr):
    """`quotas.keep_wishes` and `spread`, every lane an expert; count: [LANES] of its replicas, 0: no expert."""
    copy = tl.arange(0, COPIES)[None, :]
    place, valid = first[:, None] + copy, copy < count[:, None]
    at, on = tl.load(rank + place, mask=valid, other=0), tl.load(node + place, mask=valid, other=-1)
    others = tl.load(load + at, mask=valid, other=0) - tl.load(quota + place, mask=valid, other=0)
    # of every replica, all of its node: together; those before it: ahead
    ahead = tl.arange(0, COPIES)[None, None, :] < tl.arange(0, COPIES)[None, :, None]
    together = valid[:, :, None] & (on[:, :, None] == on[:, None, :])
    opens = valid & (tl.sum((together & ahead).to(tl.int32), axis=2) == 0)
    beside = tl.broadcast_to(others[:, None, :], together.shape)
    room = tl.sum(tl.where(together, tl.maximum(bound - beside, 0), 0), axis=2)
    kept = tl.minimum(tl.load(wished[:, None] + on, mask=valid, other=0), room)

    # the common level, by Newton's method from above
    level = tl.max(tl.where(valid, others, 0), axis=1) + (whole + count - 1) // tl.maximum(count, 1)
    here = room * 0
    more = tl.max(count, axis=0) > 0
    while more:
        below = together & (beside < level[:, None, None])
        here = tl.sum(tl.where(below, level[:, None, None] - beside, 0), axis=2)
        rising = tl.sum(below.to(tl.int32), axis=2)
        amount = tl.sum(tl.where(opens, tl.maximum(here, kept), 0), axis=1)
        slope = tl.sum(tl.where(opens & (here > kept), rising, 0), axis=1)
        beyond = tl.maximum(amount - whole, 0)
        level -= (beyond + slope - 1) // tl.maximum(slope, 1) * (beyond > 0).to(tl.int32)
        more = tl.max(beyond, axis=0) > 0

    # nodes that keep more than the level gives them are filled to a level of their own, first ones one more
    filled = valid & (here < kept)
    size = tl.sum(together.to(tl.int32), axis=2)
    highest = tl.max(tl.where(together, beside, 0), axis=2)
    own_level = highest + (kept + size - 1) // tl.maximum(size, 1)
    left = room * 0
    more = tl.max(tl.max(filled.to(tl.int32), axis=1), axis=0) > 0
    while more:
        below = together & (beside < own_level[:, :, None])
        left = kept - tl.sum(tl.where(below, own_level[:, :, None] - beside, 0), axis=2)
        rising = tl.sum(below.to(tl.int32), axis=2)
        short = filled & (left < 0)
        own_level = tl.where(short, own_level - (rising - left - 1) // tl.maximum(rising, 1), own_level)
        more = tl.max(tl.max(short.to(tl.int32), axis=1), axis=0) > 0
    fits = (others <= own_level) & filled
    before = tl.sum((together & ahead & (beside <= own_level[:, :, None])).to(tl.int32), axis=2)
    in_node = tl.maximum(own_level - others, 0) + (fits & (before < left)).to(tl.int32)
    mine = tl.where(filled, in_node, tl.where(valid, tl.maximum(level[:, None] - others, 0), 0))

    # what remains, one each, to ranks at the level, which are the lightest
    remains = whole - tl.sum(mine, axis=1)
    lowest = (valid & (others + mine == level[:, None])).to(tl.int32)
    through = tl.cumsum(lowest, axis=1)
    turn = tl.where(late[:, None] > 0, tl.sum(lowest, axis=1)[:, None] - through, through - lowest)
    mine += lowest * (turn < remains[:, None]).to(tl.int32)
    tl.store(quota + place, mine, mask=valid)
    tl.store(load + at, others + mine, mask=valid)


@triton.jit
def _row(source, sources_of, gathered, payload, experts, start, rank, node, sums, earlier, quota, row,
         NODES: tl.constexpr, ROWS: tl.constexpr, COPIES: tl.constexpr):  # fmt: skip
    """row: [S, NODES + 1], filled where a selection can look: `rows.row_of_source`, three rounds."""
    copy = tl.arange(0, COPIES)[None, :]
    ahead = tl.arange(0, COPIES)[None, None, :] < tl.arange(0, COPIES)[None, :, None]
    for begin in range(0, experts, ROWS):
        expert = begin + tl.arange(0, ROWS)
        there = expert < experts
        first = tl.load(start + expert, mask=there, other=0)
        count = tl.load(start + expert + 1, mask=there, other=0) - first
        place, valid = first[:, None] + copy, there[:, None] & (copy < count[:, None])
        on = tl.load(node + place, mask=valid, other=-1)
        owner = tl.load(sources_of + tl.load(rank + place, mask=valid, other=0), mask=valid, other=-1)
        room = tl.load(quota + place, mask=valid, other=0)
        line, unwilling = expert[:, None] * (NODES + 1) + on, expert * (NODES + 1) + NODES
        together = valid[:, :, None] & (on[:, :, None] == on[:, None, :])
        opens = valid & (tl.sum((together & ahead).to(tl.int32), axis=2) == 0)

        # 1: own ranks
        wants = tl.load(gathered + owner * payload + line, mask=valid, other=0)
        beside = together & ahead & (owner[:, :, None] == owner[:, None, :])
        number = tl.minimum(room, tl.maximum(wants - tl.sum(tl.where(beside, room[:, None, :], 0), axis=2), 0))
        own = tl.where(owner == source, number, 0)
        sooner = tl.where(owner < source, number, 0)
        room -= number
        whole = tl.load(sums + line, mask=valid, other=0)
        whole -= tl.sum(tl.where(together, number[:, None, :], 0), axis=2)
        past = tl.load(earlier + line, mask=valid, other=0)
        past -= tl.sum(tl.where(together, sooner[:, None, :], 0), axis=2)
        mine = tl.load(gathered + source * payload + line, mask=valid, other=0)
        mine -= tl.sum(tl.where(together, own[:, None, :], 0), axis=2)

        # 2: wished nodes; waiting: selections of earlier sources that nobody has served then
        passed = tl.sum(tl.where(together & ahead, room[:, None, :], 0), axis=2)
        shared = tl.maximum(tl.minimum(past + mine, passed + room) - tl.maximum(past, passed), 0)
        size = tl.sum(tl.where(together, room[:, None, :], 0), axis=2)
        waiting = tl.load(earlier + unwilling, mask=there, other=0)
        waiting += tl.sum(tl.where(opens, tl.maximum(past - size, 0), 0), axis=1)
        room -= tl.minimum(tl.maximum(whole - passed, 0), room)
        left = tl.where(opens, mine - tl.sum(tl.where(together, shared[:, None, :], 0), axis=2), 0)
        near = own + shared

        # 3: what is left, in the order of wishes: [ROWS, replicas, wishes by the first replica of their node]
        passed = tl.cumsum(room, axis=1) - room
        stands = waiting[:, None] + tl.cumsum(left, axis=1) - left
        ends = tl.minimum((stands + left)[:, None, :], (passed + room)[:, :, None])
        taken = tl.maximum(ends - tl.maximum(stands[:, None, :], passed[:, :, None]), 0)
        taken += tl.where(together, near[:, :, None], 0)
        tl.store(
            row + place[:, :, None] * (NODES + 1) + on[:, None, :], taken, mask=valid[:, :, None] & opens[:, None, :]
        )
        stand = waiting + tl.sum(left, axis=1)
        end = stand + tl.load(gathered + source * payload + unwilling, mask=there, other=0)
        taken = tl.maximum(tl.minimum(end[:, None], passed + room) - tl.maximum(stand[:, None], passed), 0)
        tl.store(row + place * (NODES + 1) + NODES, taken, mask=valid)


@triton.jit(
    do_not_specialize=["sources", "source", "payload", "num_ranks", "tolerance"],
    do_not_specialize_on_alignment=["gathered", "sizes", "colour_start", "start", "rank", "node"],
)
def solve_kernel(
    gathered, sources, source, payload, num_ranks, tolerance, source_of_rank,
    sizes, colour_start, start, rank, node, sums, earlier, total, load, quota, row,
    NODES: tl.constexpr, WIDE: tl.constexpr, RANKS: tl.constexpr, LANES: tl.constexpr, COPIES: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """One program. Shapes as in `tables.ExactMaps` and `Work`. WIDE, RANKS: powers of two that hold all wishes, ranks;
    LANES: experts of a colour at most; COPIES: replicas of an expert; ROWS: experts that are dealt at once.
    """
    experts, colours = tl.load(sizes), tl.load(sizes + 2)
    _add_sources(gathered, sources, source, payload, sums, earlier, 16, 256)
    tl.debug_barrier()
    number = tl.arange(0, RANKS)
    base = tl.load(sums + payload - num_ranks + number, mask=number < num_ranks, other=0)
    tl.store(load + number, base, mask=number < num_ranks)
    tl.debug_barrier()
    _equal_quotas(experts, start, rank, sums, total, load, quota, NODES + 1, WIDE, ROWS, COPIES)
    tl.debug_barrier()
    whole = tl.sum(tl.load(load + number, mask=number < num_ranks, other=0).to(tl.int64), axis=0)
    goal = tl.maximum((whole + num_ranks - 1) // num_ranks, tl.max(base, axis=0).to(tl.int64))
    goal += goal * tolerance // FINE
    sweeps = tl.minimum(tl.maximum(STEPS // tl.maximum(colours, 1) - 1, LEAST), MOST)
    for sweep in range(sweeps + 1):
        bound = tl.where(sweep == 0, goal + goal * FIRST_ABOVE // 64, goal)
        steps = colours
        if sweep == sweeps:  # the goal may be out of reach: what fits below the peak stays where it wishes to be
            peak = tl.max(tl.load(load + number, mask=number < num_ranks, other=0), axis=0).to(tl.int64)
            bound = peak + peak * tolerance // FINE
            steps = tl.where(peak > goal, colours, 0)
        for colour in range(steps):
            expert = tl.load(colour_start + colour) + tl.arange(0, LANES)
            there = expert < tl.load(colour_start + colour + 1)
            first = tl.load(start + expert, mask=there, other=0)
            count = tl.load(start + expert + 1, mask=there, other=0) - first
            size = tl.load(total + expert, mask=there, other=0)
            late = (mixed(expert.to(tl.uint32), (expert * 0 + sweep).to(tl.uint32)) & 1).to(tl.int32)
            wished, limit = sums + expert * (NODES + 1), bound.to(tl.int32)
            if tl.max(count, axis=0) <= 2:
                _lanes_of_two(first, there, size, late, limit, wished, rank, node, load, quota)
            else:
                _lanes_of_many(first, count, size, late, limit, wished, rank, node, load, quota, COPIES)
            tl.debug_barrier()
    _row(source, source_of_rank, gathered, payload, experts, start, rank, node, sums, earlier, quota, row,
         NODES, ROWS, COPIES)  # fmt: skip


def launch_solve(gathered: torch.Tensor, layer: ExactLayer) -> None:
    """One launch: `work.quota` and `work.row` from the counts of all sources."""
    maps, work, ranks = layer.maps, layer.work, len(layer.node_of_rank)
    copies = triton.next_power_of_2(layer.most)
    solve_kernel[(1,)](
        gathered, len(gathered), layer.source, len(work.mine), ranks, layer.tolerance, layer.source_of_rank,
        maps.sizes, maps.colour_start, maps.start, maps.rank, maps.node,
        work.sums, work.earlier, work.total, work.load, work.quota, work.row,
        NODES=layer.num_nodes, WIDE=triton.next_power_of_2(layer.num_nodes + 1), RANKS=triton.next_power_of_2(ranks),
        LANES=triton.next_power_of_2(max(ranks // 2, 1)), COPIES=copies,
        ROWS=min(triton.next_power_of_2(len(work.total)), max(PAIRS // copies**2, 1)), num_warps=8,
    )  # fmt: skip
