"""The peaks that quotas leave: loads of the busiest ranks, step by step, as `exact` would even them out."""

from __future__ import annotations

import numpy as np

from ...jit import Array, kernel
from ..rules.min_cost_flow import Copies, list_by_expert

SWEEPS = 6  # over the experts, to settle a step


@kernel
def open_slots(phy2log: Array, experts: int, slots: int) -> Copies:
    """One slot of every expert on a rank, by expert: a second one there makes no rank lighter."""
    is_first = np.ones(phy2log.shape[0], np.bool_)
    for slot in range(phy2log.shape[0]):
        for earlier in range(slot // slots * slots, slot):
            if phy2log[earlier] == phy2log[slot]:
                is_first[slot] = False
    first = np.flatnonzero(is_first)
    return list_by_expert(phy2log[first], first // slots, experts)


@kernel
def settle(load: Array, copies: Copies, multiple: Array, quota: Array, rank_load: Array) -> None:
    """load: [E] of one step -> quota: [C] and rank_load: [ranks] with a peak as low as some sweeps find it. multiple:
    experts on several ranks.
    """
    rank_load[:] = 0.0
    for expert in range(load.shape[0]):
        first, last = copies.start[expert], copies.start[expert + 1]
        for copy in copies.listed[first:last]:
            quota[copy] = load[expert] / (last - first)
            rank_load[copies.bin[copy]] += quota[copy]
    for _ in range(SWEEPS):
        for expert in multiple:
            if load[expert] > 0.0:
                listed = copies.listed[copies.start[expert] : copies.start[expert + 1]]
                fill(listed, load[expert], copies.bin, quota, rank_load)


@kernel
def fill(listed: Array, load: float, rank_of: Array, quota: Array, rank_load: Array) -> None:
    """One expert's load over its copies, up to one level of their ranks."""
    if listed.shape[0] == 2:  # most are two: in closed form
        first, second = listed[0], listed[1]
        one, other = rank_of[first], rank_of[second]
        gap = (rank_load[other] - quota[second]) - (rank_load[one] - quota[first])
        moved = min(max(0.5 * (load + gap), 0.0), load) - quota[first]
        quota[first] += moved
        quota[second] -= moved
        rank_load[one] += moved
        rank_load[other] -= moved
        return
    for copy in listed:
        rank_load[rank_of[copy]] -= quota[copy]
    below, level = np.inf, 0.0
    while True:  # ranks above the level take nothing, which lowers it
        amount, filled, highest = load, 0, -1.0
        for copy in listed:
            other = rank_load[rank_of[copy]]
            if other < below:
                amount += other
                filled += 1
        level = amount / filled
        for copy in listed:
            other = rank_load[rank_of[copy]]
            if level < other < below:
                highest = max(highest, other)
        if highest < 0.0:
            break
        below = highest
    for copy in listed:
        quota[copy] = max(level - rank_load[rank_of[copy]], 0.0) if rank_load[rank_of[copy]] < below else 0.0
    for copy in listed:
        rank_load[rank_of[copy]] += quota[copy]


@kernel
def peaks_of(phy2log: Array, loads: Array, slots: int, most: float, rank_load: Array) -> float:
    """Peaks of all steps, added up; infinite if they are above `most`. rank_load: [S, ranks] is filled."""
    copies, quota = open_slots(phy2log, loads.shape[1], slots), np.empty(phy2log.shape[0])
    multiple = np.flatnonzero(copies.start[1:] - copies.start[:-1] > 1)
    peaks = loads.sum() / rank_load.shape[1]  # at the least; step by step it becomes the sum
    for step in range(loads.shape[0]):
        settle(loads[step], copies, multiple, quota, rank_load[step])
        peaks += rank_load[step].max() - rank_load[step].mean()
        if peaks > most:
            return np.inf
    return peaks
