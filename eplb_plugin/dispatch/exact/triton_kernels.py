"""`count` and `choose` on a GPU; only imported where one (or Triton's interpreter) is.

count   parts_kernel: parts of a batch side by side, each counts its own selections, in whatever order
        scan_kernel: their sum, and for every part what parts before it have
choose  solve_kernel (`triton_solve.py`): quotas and this rank's row, in one program
        map_kernel: the same parts; a selection's number is that of its part, of earlier tiles and of those before it in
        the tile, all sums: no order of threads matters
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..buffers import Counters
from ..triton_kernels import count_slots, mixed, needed_nodes, record_tile
from .tables import PARTS, ExactLayer
from .triton_solve import launch_solve

SELECTIONS = 64  # of a tile, every pair of which is compared
COLUMNS = 32  # of a scan's tile


@triton.jit
def _wishes(token, known, expert, lies, held, rank, NODES: tl.constexpr, COVERS: tl.constexpr):
    """[TOKENS, WIDTH] int32 `wishes.token_wishes`; lies: masks of the experts' nodes."""
    key = mixed(token.to(tl.uint32), (token * 0 + rank).to(tl.uint32))
    needed = key.to(tl.int64) * 0 + held
    minds = known
    if COVERS:
        needed = needed_nodes(known, lies, held, key, NODES)
        minds = known & ((lies & ~needed[:, None]) != 0)
    near = lies & held
    allowed = tl.where(near != 0, near, lies & needed[:, None])
    count = expert * 0
    for node in range(NODES):
        count += ((allowed >> node) & 1).to(tl.int32)
    drawn = mixed(key[:, None], (expert + NODES).to(tl.uint32))
    turn = ((drawn.to(tl.uint64) * count.to(tl.uint64)) >> 32).to(tl.int32)
    wish = expert * 0 + NODES
    for node in range(NODES):
        here = ((allowed >> node) & 1).to(tl.int32)
        wish = tl.where((here > 0) & (turn == 0), node, wish)
        turn -= here
    return tl.where(minds, wish, NODES)


@triton.jit
def _selections(token, last, ids, id_row, id_column, num_experts, K: tl.constexpr, WIDTH: tl.constexpr):
    """-> which of [TOKENS, WIDTH] are of tokens, their ids, which are experts'."""
    column = tl.arange(0, WIDTH)
    there = (token[:, None] < last) & (column[None, :] < K)
    place = token[:, None].to(tl.int64) * id_row + column[None, :] * id_column
    found = tl.load(ids + place, mask=there, other=-1).to(tl.int32)
    return there, found, there & (found >= 0) & (found < num_experts)


_VARYING = ["id_row", "id_column", "num_rows", "run", "num_experts", "held", "rank", "payload"]
_MAPS = ["nodes", "row_of", "only_slot"]


@triton.jit(do_not_specialize=[*_VARYING, "ranks_at", "slots_per_rank"], do_not_specialize_on_alignment=_MAPS)
def parts_kernel(
    ids, id_row, id_column, num_rows, run, nodes, row_of, only_slot, num_experts, held, rank, slots_per_rank,
    parts, payload, ranks_at,
    K: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, NODES: tl.constexpr, COVERS: tl.constexpr,
    CLEARED: tl.constexpr,
):  # fmt: skip
    """A program counts `run` tokens into its line of `parts`. ranks_at: where the selections of ranks begin there."""
    mine, first = parts + tl.program_id(0) * payload, tl.program_id(0) * run
    for begin in range(0, payload, CLEARED):
        column = begin + tl.arange(0, CLEARED)
        tl.store(mine + column, column * 0, mask=column < payload)
    tl.debug_barrier()
    last = tl.minimum(first + run, num_rows)
    for begin in range(first, last, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        _, found, known = _selections(token, last, ids, id_row, id_column, num_experts, K, WIDTH)
        expert = tl.where(known, found, 0)
        lies = tl.load(nodes + expert, mask=known, other=0)
        wish = _wishes(token, known, expert, lies, held, rank, NODES, COVERS)
        row = tl.load(row_of + expert, mask=known, other=-1)
        slot = tl.load(only_slot + expert, mask=known, other=0)
        column = tl.where(row >= 0, row * (NODES + 1) + wish, ranks_at + slot // slots_per_rank)
        tl.atomic_add(mine + column, 1, mask=known, sem="relaxed")


@triton.jit(do_not_specialize=["num_parts", "payload"])
def scan_kernel(parts, mine, num_parts, payload, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """mine: [payload], the sum of parts; of each part, in place, the sum of those before it."""
    part, column = tl.arange(0, PARTS)[:, None], tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (part < num_parts) & (column[None, :] < payload)
    found = tl.load(parts + part * payload + column[None, :], mask=there, other=0)
    tl.store(parts + part * payload + column[None, :], tl.cumsum(found, axis=0) - found, mask=there)
    tl.store(mine + column, tl.sum(found, axis=0), mask=column < payload)


@triton.jit(
    do_not_specialize=[*_VARYING, "chunk", "max_rows"],
    do_not_specialize_on_alignment=[*_MAPS, "start", "slot", "rows", "load", "pairs", "slot_load"],
)
def map_kernel(
    ids, id_row, id_column, num_rows, run, slots, nodes, row_of, only_slot, start, slot, num_experts, held, rank,
    parts, payload, quotas,
    rows, load, pairs, slot_load, enabled, pairs_enabled, slots_enabled, real, chunk, max_rows,
    K: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, NODES: tl.constexpr, COVERS: tl.constexpr,
):  # fmt: skip
    """quotas: [S, NODES + 1], this source's row; parts: as `scan_kernel` leaves them, used up."""
    mine, first = parts + tl.program_id(0) * payload, tl.program_id(0) * run
    last, own = tl.minimum(first + run, num_rows), tl.load(real) - chunk * num_rows
    number = tl.arange(0, TOKENS * WIDTH)
    for begin in range(first, last, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        there, found, known = _selections(token, last, ids, id_row, id_column, num_experts, K, WIDTH)
        expert = tl.where(known, found, 0)
        lies = tl.load(nodes + expert, mask=known, other=0)
        wish = _wishes(token, known, expert, lies, held, rank, NODES, COVERS)
        row = tl.load(row_of + expert, mask=known, other=-1)
        line = tl.reshape(tl.where(row >= 0, row * (NODES + 1) + wish, -1), [TOKENS * WIDTH])
        alike = (line[:, None] == line[None, :]).to(tl.int32)
        sooner = tl.sum(tl.where(number[None, :] < number[:, None], alike, 0), axis=1)
        later = tl.sum(tl.where(number[None, :] > number[:, None], alike, 0), axis=1)
        turn = tl.load(mine + line, mask=line >= 0, other=0) + sooner
        tl.debug_barrier()
        tl.store(mine + line, turn + 1, mask=(line >= 0) & (later == 0))
        tl.debug_barrier()
        turn = tl.reshape(turn, [TOKENS, WIDTH])
        place = tl.load(start + row, mask=row >= 0, other=0)
        count = tl.load(start + row + 1, mask=row >= 0, other=0) - place
        chosen = tl.load(only_slot + expert, mask=known, other=-1)  # -1 where it has replicas
        for copy in range(tl.max(tl.max(count, axis=1), axis=0)):
            quota = tl.load(quotas + (place + copy) * (NODES + 1) + wish, mask=copy < count, other=0)
            taken = tl.load(slot + place + copy, mask=copy < count, other=0)
            chosen = tl.where((turn >= 0) & (turn < quota), taken, chosen)
            turn -= quota
        column = tl.arange(0, WIDTH)[None, :]
        tl.store(slots + token[:, None] * K + column, chosen.to(slots.dtype.element_ty), mask=there)
        count_slots(token, chosen, own, slot_load, slots_enabled)
        record_tile(
            token, there, found, known, own, rows, load, pairs, enabled, pairs_enabled, max_rows, num_experts, K, WIDTH,
        )  # fmt: skip


def _grid(ids: torch.Tensor) -> tuple[int, int, int, int]:
    """-> width and tokens of a tile, tokens of a part, parts."""
    width = triton.next_power_of_2(ids.shape[1])
    tokens = max(1, SELECTIONS // width)
    run = triton.cdiv(triton.cdiv(ids.shape[0], tokens), PARTS) * tokens
    return width, tokens, run, triton.cdiv(ids.shape[0], max(run, 1))


def launch_count(ids: torch.Tensor, layer: ExactLayer) -> None:
    """Two launches; leaves `work.mine`, and `work.parts` for `launch_choose`."""
    maps, work, payload = layer.maps, layer.work, len(layer.work.mine)
    width, tokens, run, parts = _grid(ids)
    if parts:
        parts_kernel[(parts,)](
            ids, ids.stride(0), ids.stride(1), len(ids), run, maps.nodes, maps.row_of, maps.only_slot, len(maps.nodes),
            layer.held, layer.rank, layer.slots_per_rank, work.parts, payload, payload - len(layer.node_of_rank),
            K=ids.shape[1], WIDTH=width, TOKENS=tokens, NODES=layer.num_nodes, COVERS=layer.covers, CLEARED=512,
        )  # fmt: skip
    scan_kernel[(triton.cdiv(payload, COLUMNS),)](work.parts, work.mine, parts, payload, PARTS=PARTS, COLUMNS=COLUMNS)


def launch_choose(
    ids: torch.Tensor, layer: ExactLayer, gathered: torch.Tensor, slots: torch.Tensor, counters: Counters
) -> None:
    """Two launches after `launch_count` of the same ids. slots: [T, k], filled."""
    maps, work = layer.maps, layer.work
    width, tokens, run, parts = _grid(ids)
    if not parts:
        return
    launch_solve(gathered, layer)
    map_kernel[(parts,)](
        ids, ids.stride(0), ids.stride(1), len(ids), run, slots, maps.nodes, maps.row_of, maps.only_slot, maps.start,
        maps.slot, len(maps.nodes), layer.held, layer.rank, work.parts, len(work.mine), work.row,
        *counters, counters.rows.shape[0],
        K=ids.shape[1], WIDTH=width, TOKENS=tokens, NODES=layer.num_nodes, COVERS=layer.covers,
    )  # fmt: skip
