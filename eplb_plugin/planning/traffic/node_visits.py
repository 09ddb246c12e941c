"""The nodes that tokens visit, kept up to date while single-copy experts move: every candidate's gain is O(1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from .weighted import INGRESS_PRICE


class Visits(NamedTuple):
    """rows: [T, K] single-copy experts of every token, -1 = none; those of expert e: listed[start[e] : start[e + 1]].

    pins: [T, nodes] reasons of a token to visit a node; node_of: [E]; sole: [E] tokens for which an expert is the only
    reason to visit its node; absent: [nodes, E] tokens of an expert that have no reason to visit a node;
    visited: [nodes] tokens that have one; own: [nodes] of these, those that visit for free, as they come from it.
    """

    rows: Array
    start: Array
    listed: Array
    pins: Array
    node_of: Array
    sole: Array
    absent: Array
    visited: Array
    own: Array


@kernel
def open_visits(rows: Array, pins: Array, node_of: Array, own: Array) -> Visits:
    """`pins`: all other reasons; those of `rows` are added in place. `node_of` is kept up to date in place."""
    experts, nodes = node_of.shape[0], pins.shape[1]
    start, listed = list_tokens(rows, experts)
    sole, visited = np.zeros(experts, np.int64), np.zeros(nodes, np.int64)
    lacking, unvisited = np.zeros((experts, nodes), np.int32), np.empty(nodes, np.int32)  # an expert's side by side
    for token in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            if rows[token, k] >= 0:
                pins[token, node_of[rows[token, k]]] += 1
        for node in range(nodes):
            unvisited[node] = pins[token, node] == 0
            visited[node] += pins[token, node] > 0
        for k in range(rows.shape[1]):
            expert = rows[token, k]
            if expert >= 0:
                sole[expert] += pins[token, node_of[expert]] == 1
                for node in range(nodes):
                    lacking[expert, node] += unvisited[node]
    absent = np.ascontiguousarray(lacking.T).astype(np.int64)
    return Visits(rows, start, listed, pins, node_of, sole, absent, visited, own)


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
    """Change of visits of both experts' nodes by a swap, by the tables: too low where tokens select both."""
    a, b = visits.node_of[mine], visits.node_of[other]
    return visits.absent[a, other] - visits.sole[mine], visits.absent[b, mine] - visits.sole[other]


@kernel
def real_changes(visits: Visits, mine: int, other: int) -> tuple[int, int]:
    """The same as it really is: tokens that select both experts go on visiting both nodes."""
    a, b, pins = visits.node_of[mine], visits.node_of[other], visits.pins
    change_a, change_b = swap_changes(visits, mine, other)
    rare, frequent = mine, other
    if visits.start[mine + 1] - visits.start[mine] > visits.start[other + 1] - visits.start[other]:
        rare, frequent = other, mine
    for entry in range(visits.start[rare], visits.start[rare + 1]):
        token = visits.listed[entry]
        if pins[token, a] != 1 and pins[token, b] != 1:
            continue
        for k in range(visits.rows.shape[1]):
            if visits.rows[token, k] == frequent:
                change_a += pins[token, a] == 1
                change_b += pins[token, b] == 1
    return change_a, change_b


@kernel
def relief(amount_a: float, amount_b: float, change_a: float, change_b: float, bound: float) -> float:
    """Excess over `bound` that two changes take away."""
    before = max(amount_a - bound, 0.0) + max(amount_b - bound, 0.0)
    return before - max(amount_a + change_a - bound, 0.0) - max(amount_b + change_b - bound, 0.0)


@kernel
def most_arrivals(visits: Visits, tolerance: float) -> float:
    """Tokens that may arrive at a node from others before more of them have a price."""
    arriving = 0
    for node in range(visits.own.shape[0]):
        arriving += visits.visited[node] - visits.own[node]
    return arriving / visits.own.shape[0] * (1.0 + tolerance)


@kernel
def worth_of(visits: Visits, a: int, b: int, change_a: int, change_b: int, most: float) -> float:
    """Visits that changes of two nodes save, and those in excess of `most` at their price."""
    in_a, in_b = visits.visited[a] - visits.own[a], visits.visited[b] - visits.own[b]
    return -float(change_a + change_b) + INGRESS_PRICE * relief(in_a, in_b, change_a, change_b, most)


@kernel
def swap_worth(visits: Visits, mine: int, other: int, most: float) -> float:
    """What a swap across nodes saves by the tables, arrivals above `most` at their price; too high where tokens select
    both experts.
    """
    change_a, change_b = swap_changes(visits, mine, other)
    return worth_of(visits, visits.node_of[mine], visits.node_of[other], change_a, change_b, most)


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
        if left == 0:
            saved += 1
            visited[origin] -= 1
            sole[expert] -= 1
            for k in range(rows.shape[1]):
                if rows[token, k] >= 0:
                    absent[origin, rows[token, k]] += 1
        elif left == 1:
            for k in range(rows.shape[1]):
                other = rows[token, k]
                if other >= 0 and node_of[other] == origin and other != expert:
                    sole[other] += 1
        if found == 0:
            saved -= 1
            visited[target] += 1
            sole[expert] += 1
            for k in range(rows.shape[1]):
                if rows[token, k] >= 0:
                    absent[target, rows[token, k]] -= 1
        elif found == 1:
            for k in range(rows.shape[1]):
                other = rows[token, k]
                if other >= 0 and node_of[other] == target:
                    sole[other] -= 1
    node_of[expert] = target
    return saved
