"""The nodes that tokens visit, kept up to date while single-copy experts move: every candidate's gain is O(1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import Array, kernel


class Visits(NamedTuple):
    """rows: [T, K] single-copy experts of every token, -1 = none; those of expert e: listed[start[e] : start[e + 1]].

    pins: [T, nodes] reasons of a token to visit a node; node_of: [E]; sole: [E] tokens for which an expert is the only
    reason to visit its node; absent: [nodes, E] tokens of an expert that have no reason to visit a node;
    visited: [nodes] tokens that have one.
    """

    rows: Array
    start: Array
    listed: Array
    pins: Array
    node_of: Array
    sole: Array
    absent: Array
    visited: Array


@kernel
def open_visits(rows: Array, pins: Array, node_of: Array) -> Visits:
    """`pins`: all other reasons; those of `rows` are added in place. `node_of` is kept up to date in place."""
    experts = node_of.shape[0]
    start, listed = list_tokens(rows, experts)
    sole, absent = np.zeros(experts, np.int64), np.zeros((pins.shape[1], experts), np.int64)
    for token in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            if rows[token, k] >= 0:
                pins[token, node_of[rows[token, k]]] += 1
        for k in range(rows.shape[1]):
            expert = rows[token, k]
            if expert >= 0:
                sole[expert] += pins[token, node_of[expert]] == 1
                for node in range(pins.shape[1]):
                    absent[node, expert] += pins[token, node] == 0
    visited = np.zeros(pins.shape[1], np.int64)
    for token in range(pins.shape[0]):
        visited += pins[token] > 0
    return Visits(rows, start, listed, pins, node_of, sole, absent, visited)


@kernel
def list_tokens(rows: Array, experts: int) -> tuple[Array, Array]:
    start = np.zeros(experts + 1, np.int64)
    for token in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            if rows[token, k] >= 0:
                start[rows[token, k] + 1] += 1
    start = np.cumsum(start)
    listed, filled = np.empty(start[experts], np.int32), start[:experts].copy()
    for token in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            expert = rows[token, k]
            if expert >= 0:
                listed[filled[expert]] = token
                filled[expert] += 1
    return start, listed


@kernel
def swap_changes(visits: Visits, mine: int, other: int) -> tuple[int, int]:
    """Change of the visits of both experts' nodes by a swap, by the tables: too low where tokens select both."""
    a, b = visits.node_of[mine], visits.node_of[other]
    return visits.absent[a, other] - visits.sole[mine], visits.absent[b, mine] - visits.sole[other]


@kernel
def swap_gain(visits: Visits, mine: int, other: int) -> int:
    """Visits that a swap across nodes saves, by the tables: too high where tokens select both experts."""
    change_a, change_b = swap_changes(visits, mine, other)
    return -change_a - change_b


@kernel
def swap_experts(visits: Visits, mine: int, other: int) -> int:
    """Exchange the nodes of two experts; returns the visits that this really saves. Done twice, nothing changed."""
    a, b = visits.node_of[mine], visits.node_of[other]
    return _move(visits, mine, b) + _move(visits, other, a)


@kernel
def _move(visits: Visits, expert: int, target: int) -> int:
    rows, pins, node_of, sole, absent = visits.rows, visits.pins, visits.node_of, visits.sole, visits.absent
    visited = visits.visited
    origin, saved = node_of[expert], 0
    for entry in range(visits.start[expert], visits.start[expert + 1]):
        token = visits.listed[entry]
        left, found = pins[token, origin] - 1, pins[token, target]
        pins[token, origin] -= 1
        pins[token, target] += 1
        if left > 1 and found > 1:
            continue
        saved += (left == 0) - (found == 0)
        visited[origin] -= left == 0
        visited[target] += found == 0
        sole[expert] += (found == 0) - (left == 0)
        for k in range(rows.shape[1]):
            other = rows[token, k]
            if other < 0:
                continue
            absent[origin, other] += left == 0
            absent[target, other] -= found == 0
            if other != expert:
                sole[other] += (left == 1 and node_of[other] == origin) - (found == 1 and node_of[other] == target)
    node_of[expert] = target
    return saved
