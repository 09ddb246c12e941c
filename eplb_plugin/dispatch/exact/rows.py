"""Which of the quotas are one source's: every rank computes its own row from the counts of all, and only that.

A source is a rank, or the ranks that route the same tokens, which are all its own. An expert's selections are dealt to
its replicas in three rounds: (1) a source's own ranks, (2) wishes for a node to that node's replicas, (3) what is left.
In rounds 2 and 3 sources stand in line, in their order: a source's selections are an interval of the line, a replica's
quota is an interval of it too, and what both share goes from one to the other. So a row needs sums over earlier
sources, and rows of different sources fit together without a word between them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from .replicas import MOST_REPLICAS, Replicas


class Line(NamedTuple):
    """Selections of one expert that no replica has taken yet, by wish: [nodes + 1] int64 each.

    earlier: of the sources before the one whose row it is; mine: of that one; whole: of all sources. served: [C] what
    every replica took in round 1.
    """

    earlier: Array
    mine: Array
    whole: Array
    served: Array


class Seen(NamedTuple):
    """What a source needs to know of a step.

    counts: [sources, M, nodes + 1] selections by source, expert and wish (last: none); whole: [M, nodes + 1] of all
    sources; earlier: [M, nodes + 1] of those before this one; source: its own number; source_of_rank: [ranks].
    """

    counts: Array
    whole: Array
    earlier: Array
    source: int
    source_of_rank: Array


@kernel
def row_of_source(replicas: Replicas, quota: Array, seen: Seen) -> Array:
    """[S, nodes + 1] int32: how many of the source's selections with each wish a replica serves. quota: [S]."""
    experts, wishes = seen.whole.shape
    row, left = np.zeros((quota.shape[0], wishes), np.int32), quota.copy()
    line = Line(
        np.empty(wishes, np.int64),
        np.empty(wishes, np.int64),
        np.empty(wishes, np.int64),
        np.empty(MOST_REPLICAS, np.int64),
    )
    for expert in range(experts):
        line.earlier[:] = seen.earlier[expert]
        line.whole[:] = seen.whole[expert]
        line.mine[:] = seen.counts[seen.source, expert]
        first, last = replicas.start[expert], replicas.start[expert + 1]
        owner, node = seen.source_of_rank[replicas.rank[first:last]], replicas.node[first:last]
        room, taken = left[first:last], row[first:last]
        _own_ranks(owner, node, seen.counts[:, expert], seen.source, room, taken, line)
        waiting = _wished_nodes(node, room, taken, line)
        _what_is_left(room, taken, waiting, line.mine)
    return row


@kernel
def _own_ranks(owner: Array, node: Array, counts: Array, source: int, room: Array, taken: Array, line: Line) -> None:
    """Round 1, of every source that has replicas on ranks of its own: what wishes for their node, the first one first.

    owner, node, room: [C] of the expert's replicas: source of the rank, its node, what is left of the quota;
    counts: [sources, nodes + 1]; taken: [C, nodes + 1] of the source's row.
    """
    for place in range(owner.shape[0]):
        number = np.int64(counts[owner[place], node[place]])
        for earlier in range(place):
            if owner[earlier] == owner[place] and node[earlier] == node[place]:
                number -= line.served[earlier]
        number = min(np.int64(room[place]), number)
        line.served[place] = number
        room[place] -= number
        line.whole[node[place]] -= number
        if owner[place] < source:
            line.earlier[node[place]] -= number
        if owner[place] == source:
            taken[place, node[place]] += number
            line.mine[node[place]] -= number


@kernel
def _wished_nodes(node: Array, room: Array, taken: Array, line: Line) -> int:
    """Round 2; returns how many selections of earlier sources wait for round 3."""
    none = line.earlier.shape[0] - 1
    waiting = line.earlier[none]
    for wish in range(none):
        if line.whole[wish] == 0:
            continue
        begin, end, passed = line.earlier[wish], line.earlier[wish] + line.mine[wish], np.int64(0)
        for place in range(node.shape[0]):
            if node[place] != wish:
                continue
            shared = min(end, passed + room[place]) - max(begin, passed)
            if shared > 0:
                taken[place, wish] += shared
                line.mine[wish] -= shared
            served = min(max(line.whole[wish] - passed, 0), np.int64(room[place]))
            passed += room[place]
            room[place] -= served
        waiting += max(line.earlier[wish] - passed, 0)
    return waiting


@kernel
def _what_is_left(room: Array, taken: Array, waiting: int, mine: Array) -> None:
    """Round 3: the source's own stand in the order of their wishes behind `waiting` selections of earlier sources."""
    begin = np.int64(waiting)
    for wish in range(mine.shape[0]):
        end, passed = begin + mine[wish], np.int64(0)
        for place in range(room.shape[0]):
            shared = min(end, passed + room[place]) - max(begin, passed)
            if shared > 0:
                taken[place, wish] += shared
            passed += room[place]
        begin = end
