"""Mapping and recording as one Triton kernel; only imported where a GPU (or Triton's interpreter) is.

A program takes a few tokens with all their experts: [TOKENS, WIDTH] tiles, WIDTH = k rounded up to a power of two.
Nodes that a token needs are bits of an int64. Counts are integer atomics: their order does not matter, so results are
the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..limits import MOST_WEIGHT, NODE_SHIFT, SLOT_SHIFT
from .buffers import Counters, LayerTables
from .rules import HASH_MULTIPLIER

TILE = 1024  # elements of the largest tile, all pairs of every token
WEIGHT, TO_NODE, TO_SLOT = tl.constexpr(MOST_WEIGHT), tl.constexpr(NODE_SHIFT), tl.constexpr(SLOT_SHIFT)
HASH = tl.constexpr(HASH_MULTIPLIER)
# what is done beside recording: nothing; ids are slots, whose experts are looked up; ids are mapped by a rule
RECORD, TRANSLATE, LOOK_UP, COVER = (tl.constexpr(number) for number in range(4))


@triton.jit
def mixed(first, second):
    """`cover.mixed` in uint32, which drops the upper half by itself."""
    state = first * 2654435769 + second * 2246822519
    state = (state ^ (state >> 16)) * 0x7FEB352D
    state = (state ^ (state >> 15)) * 0x846CA68B
    return state ^ (state >> 16)


@triton.jit
def needed_nodes(known, nodes, held, key, NODES: tl.constexpr):
    """[TOKENS] int64 `cover.opened_nodes`. known, nodes: [TOKENS, WIDTH]; key: [TOKENS]."""
    single = known & ((nodes & (nodes - 1)) == 0)
    needed = key.to(tl.int64) * 0 + held
    for node in range(NODES):
        here = tl.where(single, (nodes >> node) & 1, 0)
        needed |= tl.max(here, axis=1) << node
    more = tl.max(key, axis=0) >= 0  # true: at least one round, after which it says whether any token opened a node
    while more:
        left = known & ((nodes & needed[:, None]) == 0)
        best = needed * 0
        for node in range(NODES):
            served = tl.sum(tl.where(left, (nodes >> node) & 1, 0), axis=1)
            drawn = mixed(key, (key * 0 + node).to(tl.uint32))
            rank = (served << 38) | (drawn.to(tl.int64) << 6) | (63 - node)  # most served, then drawn, then first
            best = tl.where(served > 1, tl.maximum(best, rank), best)
        opened = (best * 0 + 1) << (63 - (best & 63))
        needed = tl.where(best > 0, needed | opened, needed)
        more = tl.max(best, axis=0) > 0
    return needed


@triton.jit
def _chosen(known, expert, nodes, needed, key, counts, copies, copies_width, NODES: tl.constexpr):
    """[TOKENS, WIDTH] int32 slots, -1 where `known` is false: the second half of `cover.cover_token`."""
    reached = nodes & needed[:, None]
    allowed = tl.where(reached != 0, reached, nodes)
    count = tl.load(counts + expert, mask=known, other=0)
    most = tl.max(tl.max(count, axis=1), axis=0)
    total = expert * 0
    for copy in range(most):
        packed = tl.load(copies + expert * copies_width + copy, mask=copy < count, other=0)
        reach = (allowed >> ((packed >> TO_NODE) & 63).to(tl.int64)) & 1
        total += (packed & WEIGHT) * reach.to(tl.int32)
    drawn = mixed(key[:, None], (expert + NODES).to(tl.uint32))
    left = ((drawn.to(tl.uint64) * total.to(tl.uint64)) >> 32).to(tl.int32)
    slot = expert * 0 - 1
    for copy in range(most):
        packed = tl.load(copies + expert * copies_width + copy, mask=copy < count, other=0)
        reach = (allowed >> ((packed >> TO_NODE) & 63).to(tl.int64)) & 1
        weight = (packed & WEIGHT) * reach.to(tl.int32)
        slot = tl.where((left >= 0) & (left < weight), packed >> TO_SLOT, slot)
        left -= weight
    return slot


@triton.jit
def count_slots(token, slot, own, slot_load, slots_enabled):
    """token: [TOKENS]; slot: [TOKENS, WIDTH], -1 = none; own: tokens of this rank that are no padding."""
    taken = (slot >= 0) & (token[:, None] < own * tl.load(slots_enabled).to(tl.int32))
    tl.atomic_add(slot_load + slot, 1, mask=taken, sem="relaxed")


@triton.jit
def record_tile(
    token, there, found, known, own, rows, load, pairs, enabled, pairs_enabled, max_rows, num_experts,
    K: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """found: [TOKENS, WIDTH] ids; there, known: which are of tokens, and experts'; own: tokens of this rank that are no
    padding. The rest as in `buffers.Counters`.
    """
    column = tl.arange(0, WIDTH)
    expert = tl.where(known, found, 0)
    if tl.load(enabled):  # the same for all programs: outside windows nothing is compared
        kept = there & (token[:, None] < tl.minimum(own, max_rows))
        one, other = expert[:, :, None], expert[:, None, :]
        both = (known & kept)[:, :, None] & (known & kept)[:, None, :]
        first, second = column[None, :, None], column[None, None, :]
        twice = tl.max(tl.max((both & (one == other) & (first < second)).to(tl.int32), axis=2), axis=1)
        counted = known & kept & (twice == 0)[:, None]
        tl.atomic_add(load + expert, 1, mask=counted, sem="relaxed")
        num_counted = tl.sum(tl.max(counted.to(tl.int32), axis=1), axis=0)
        num_left_out = tl.sum(twice, axis=0)
        tl.atomic_add(load + num_experts, num_counted, mask=num_counted > 0, sem="relaxed")
        tl.atomic_add(load + num_experts + 1, num_left_out, mask=num_left_out > 0, sem="relaxed")
        if tl.load(pairs_enabled):
            tl.store(rows + token[:, None] * K + column[None, :], tl.where(counted, found, -1).to(tl.int16), mask=kept)
            pair = tl.minimum(one, other) * (num_experts + 1) + tl.maximum(one, other)
            both = both & (twice == 0)[:, None, None] & (first <= second)
            tl.atomic_add(pairs + pair, 1, mask=both, sem="relaxed")


_VARYING = [
    "id_row", "id_column", "num_rows", "entries", "copies_width", "source", "held", "chunk", "max_rows", "num_experts",
]  # fmt: skip


# one variant for all batches and layers: none is compiled while a graph is captured
@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=["rows", "load", "pairs", "slot_load", "table"])
def pass_kernel(
    ids, id_row, id_column, num_rows, slots,
    table, entries, nodes, counts, copies, copies_width, held, source,
    rows, load, pairs, slot_load, enabled, pairs_enabled, slots_enabled, real, chunk, max_rows, num_experts,
    K: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, NODES: tl.constexpr, TASK: tl.constexpr,
):  # fmt: skip
    """Shapes as in `buffers.LayerTables` and `buffers.Counters`. table: rows [E, entries] of LOOK_UP, or the experts of
    `entries` slots.
    """
    # the program's tokens: which ids are experts
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    there = (token[:, None] < num_rows) & (column[None, :] < K)
    place = token[:, None].to(tl.int64) * id_row + column[None, :] * id_column
    found = tl.load(ids + place, mask=there, other=-1).to(tl.int32)
    if TASK == TRANSLATE:
        routed = there & (found >= 0) & (found < entries)
        found = tl.load(table + tl.where(routed, found, 0), mask=routed, other=-1).to(tl.int32)
    known = there & (found >= 0) & (found < num_experts)
    expert = tl.where(known, found, 0)

    own = tl.load(real) - chunk * num_rows  # tokens of this rank that are no padding
    # map, and count the slots of tokens that are no padding
    if TASK == LOOK_UP or TASK == COVER:  # noqa: SIM109  # Triton knows no `in`
        if TASK == LOOK_UP:
            entry = ((token.to(tl.uint32) * HASH) % entries.to(tl.uint32)).to(tl.int32)
            slot = tl.load(table + expert * entries + entry[:, None], mask=known, other=-1)
        else:
            key = mixed(token.to(tl.uint32), (token * 0 + source).to(tl.uint32))
            lies = tl.load(nodes + expert, mask=known, other=0)
            needed = needed_nodes(known, lies, held, key, NODES)
            slot = _chosen(known, expert, lies, needed, key, counts, copies, copies_width, NODES)
        tl.store(slots + token[:, None] * K + column[None, :], slot.to(slots.dtype.element_ty), mask=there)
        count_slots(token, slot, own, slot_load, slots_enabled)

    record_tile(
        token, there, found, known, own, rows, load, pairs, enabled, pairs_enabled, max_rows, num_experts, K, WIDTH,
    )  # fmt: skip


def launch(
    ids: torch.Tensor, slots: torch.Tensor | None, counters: Counters, *, tables: LayerTables | None = None,
    rows: torch.Tensor | None = None, phy2log: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """One launch over ids: [T, k]. slots: [T, k], filled by `tables` (cover) or `rows` (weighted); None: record only,
    what `ids` are if they are slots told by phy2log.
    """
    num_rows, top_k = ids.shape
    if num_rows == 0:
        return
    width = triton.next_power_of_2(top_k)
    tokens = max(1, TILE // width**2)
    nothing = counters.load  # never read
    nodes, counts, copies, held, source, num_nodes = tables or (nothing, nothing, nothing[None], 0, 0, 1)
    task, table, entries = RECORD, nothing, 1
    if tables is not None:
        task = COVER
    elif rows is not None:
        task, table, entries = LOOK_UP, rows, rows.shape[1]
    elif phy2log is not None:
        task, table, entries = TRANSLATE, phy2log, phy2log.shape[0]
    pass_kernel[(triton.cdiv(num_rows, tokens),)](
        ids, ids.stride(0), ids.stride(1), num_rows, ids if slots is None else slots,
        table, entries, nodes, counts, copies, copies.shape[1], held, source,
        *counters, counters.rows.shape[0], counters.load.shape[0] - 2,
        K=top_k, WIDTH=width, TOKENS=tokens, NODES=num_nodes, TASK=task.value,
    )  # fmt: skip
