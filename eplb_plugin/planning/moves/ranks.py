"""One layer's slots and what they mean for every rank, kept up to date while single slots are rewritten."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...jit import Array, kernel
from ..traffic.fixed_rules import Cluster, copy_shares, expert_shares


class Ranks(NamedTuple):
    """load: [E]; phy2log: [P]; before, held: [ranks, E] copies on every rank at the start and now; copies: [E, nodes];
    shares: [E, nodes] of one copy; rank_load: [ranks] expected; twins_allowed: more slots on a rank than experts.
    """

    load: Array
    phy2log: Array
    before: Array
    held: Array
    copies: Array
    shares: Array
    rank_load: Array
    twins_allowed: bool


@kernel
def count_held(phy2log: Array, cluster: Cluster, experts: int) -> Array:
    """[ranks, E] int32 copies on every rank."""
    held = np.zeros((cluster.node_of_rank.shape[0], experts), np.int32)
    for slot in range(phy2log.shape[0]):
        held[slot // cluster.slots_per_rank, phy2log[slot]] += 1
    return held


@kernel
def count_copies(held: Array, cluster: Cluster) -> Array:
    """held: [ranks, E] -> [E, nodes] int32 copies on every node."""
    copies = np.zeros((held.shape[1], cluster.num_nodes), np.int32)
    for rank in range(held.shape[0]):
        copies[:, cluster.node_of_rank[rank]] += held[rank]
    return copies


@kernel
def open_ranks(load: Array, phy2log: Array, before: Array, cluster: Cluster) -> Ranks:
    """`phy2log` is changed in place by `write_slot`; `before`: what the ranks held when moves began to count."""
    experts = load.shape[0]
    held = count_held(phy2log, cluster, experts)
    copies = count_copies(held, cluster)
    shares, rank_load = copy_shares(copies, cluster), np.zeros(held.shape[0])
    for slot in range(phy2log.shape[0]):
        rank, expert = slot // cluster.slots_per_rank, phy2log[slot]
        rank_load[rank] += load[expert] * shares[expert, cluster.node_of_rank[rank]]
    return Ranks(load, phy2log, before, held, copies, shares, rank_load, cluster.slots_per_rank > experts)


def slot_shares(ranks: Ranks, cluster: Cluster) -> Array:
    """[P] of its expert's tokens that every slot serves."""
    return ranks.shares[ranks.phy2log, np.repeat(cluster.node_of_rank, cluster.slots_per_rank)]


def mean_load(ranks: Ranks) -> float:
    """As kernels add it up, rank by rank, to the last bit; numpy's own mean is another one."""
    return float(np.cumsum(ranks.rank_load)[-1] / len(ranks.rank_load))


@kernel
def received(held: Array, before: Array) -> int:
    """held, before: [ranks, E] -> moved slots: copies that ranks hold now and did not hold before."""
    slots = 0
    for rank in range(held.shape[0]):
        for expert in range(held.shape[1]):
            slots += max(held[rank, expert] - before[rank, expert], 0)
    return slots


@kernel
def receipt(held: Array, before: Array, rank: int, incoming: int, outgoing: int) -> int:
    """Change of the moved slots if `rank` takes `incoming` in place of `outgoing`."""
    cost = 1 if held[rank, incoming] >= before[rank, incoming] else 0
    return cost - (1 if held[rank, outgoing] > before[rank, outgoing] else 0)


@kernel
def swap_receipt(held: Array, before: Array, rank: int, mine: int, other: int, theirs: int) -> int:
    """The same if two ranks exchange `mine` and `theirs`."""
    return receipt(held, before, rank, theirs, mine) + receipt(held, before, other, mine, theirs)


@kernel
def swap_held(held: Array, rank: int, mine: int, other: int, theirs: int) -> None:
    """held: [ranks, E], in place, after that exchange."""
    held[rank, mine] -= 1
    held[rank, theirs] += 1
    held[other, theirs] -= 1
    held[other, mine] += 1


@kernel
def may_take(ranks: Ranks, rank: int, expert: int) -> bool:
    return ranks.held[rank, expert] == 0 or ranks.twins_allowed


@kernel
def _add_load(ranks: Ranks, cluster: Cluster, expert: int, sign: float) -> None:
    for rank in range(ranks.held.shape[0]):
        if ranks.held[rank, expert]:
            share = ranks.shares[expert, cluster.node_of_rank[rank]]
            ranks.rank_load[rank] += sign * ranks.held[rank, expert] * ranks.load[expert] * share


@kernel
def write_slot(ranks: Ranks, cluster: Cluster, slot: int, expert: int) -> None:
    """Put `expert` into `slot` and bring everything up to date."""
    rank, previous = slot // cluster.slots_per_rank, ranks.phy2log[slot]
    node = cluster.node_of_rank[rank]
    _add_load(ranks, cluster, previous, -1.0)
    _add_load(ranks, cluster, expert, -1.0)
    ranks.phy2log[slot] = expert
    ranks.held[rank, previous] -= 1
    ranks.held[rank, expert] += 1
    ranks.copies[previous, node] -= 1
    ranks.copies[expert, node] += 1
    for changed in (previous, expert):
        if ranks.copies[changed].sum() > 0:  # zero only in the middle of a swap
            ranks.shares[changed] = expert_shares(ranks.copies[changed], changed, cluster)
        _add_load(ranks, cluster, changed, 1.0)


@kernel
def swap_slots(ranks: Ranks, cluster: Cluster, first: int, second: int) -> None:
    mine, theirs = ranks.phy2log[first], ranks.phy2log[second]
    write_slot(ranks, cluster, first, theirs)
    write_slot(ranks, cluster, second, mine)


@kernel
def swap_receipts(ranks: Ranks, cluster: Cluster, first: int, second: int) -> int:
    """Change of the moved slots if two ranks exchange the experts of two slots."""
    a, b = first // cluster.slots_per_rank, second // cluster.slots_per_rank
    mine, theirs = ranks.phy2log[first], ranks.phy2log[second]
    return swap_receipt(ranks.held, ranks.before, a, mine, b, theirs)
