"""Which rank sends an expert to which, and in which round: the loops behind `schedule`, for all layers in one pass."""

from __future__ import annotations

import numpy as np

from ..jit import Array, kernel

LOCAL = -1  # the round of a row that a rank copies from itself
NONE, HELD = -1, -2


@kernel
def _least_loaded(holders: Array, load: Array, node_of_rank: Array, node: int) -> int:
    """Of `holders` (those on `node`, or all if NONE), the one that sends least."""
    best = -1
    for rank in holders:
        if (node < 0 or node_of_rank[rank] == node) and (best < 0 or load[rank] < load[best]):
            best = rank
    return best


@kernel
def _choose_gateways(need: Array, holders: Array, held: Array, node_of_rank: Array, gateway: Array) -> None:
    """need: [n, 2] expert, rank. Write gateway[expert, node]: the need that brings it to a node, HELD if it is there.

    Of the ranks of a node that need the expert, the one to which least comes from other nodes.
    """
    ingress = np.zeros(len(node_of_rank), np.int64)
    for index in range(len(need)):
        expert, rank = need[index, 0], need[index, 1]
        node = node_of_rank[rank]
        for holder in holders[expert, : held[expert]]:
            if node_of_rank[holder] == node:
                gateway[expert, node] = HELD
        if gateway[expert, node] == NONE:
            gateway[expert, node] = index
            ingress[rank] += 1
        elif gateway[expert, node] >= 0:
            other = need[gateway[expert, node], 1]
            if ingress[rank] + 1 < ingress[other]:
                gateway[expert, node] = index
                ingress[rank] += 1
                ingress[other] -= 1


@kernel
def _choose_senders(
    need: Array, holders: Array, held: Array, node_of_rank: Array, gateway: Array, source: Array, relay_of: Array
) -> None:
    """Write source[n], and relay_of[n]: the need that brings the expert to the gateway which passes it on, or NONE."""
    load = np.zeros(len(node_of_rank), np.int64)
    for index in range(len(need)):
        expert, rank = need[index, 0], need[index, 1]
        node = node_of_rank[rank]
        entry = gateway[expert, node]
        if entry >= 0 and entry != index:
            relay_of[index] = entry
            source[index] = need[entry, 1]
            continue
        within = node if entry == HELD else NONE
        source[index] = _least_loaded(holders[expert, : held[expert]], load, node_of_rank, within)
        load[source[index]] += 1
    changed = True
    while changed:  # ends: each change lowers the sum of squared loads
        changed = False
        for index in range(len(need)):
            if relay_of[index] != NONE:
                continue
            expert, rank = need[index, 0], need[index, 1]
            node = node_of_rank[rank]
            within = node if gateway[expert, node] == HELD else NONE
            other = _least_loaded(holders[expert, : held[expert]], load, node_of_rank, within)
            if load[other] + 1 < load[source[index]]:
                load[source[index]] -= 1
                load[other] += 1
                source[index] = other
                changed = True


@kernel
def choose_sources(
    old: Array, new: Array, num_experts: int, node_of_rank: Array, slots_per_rank: int
) -> tuple[Array, Array]:
    """old, new: [L, P] int32. -> moves [M, 6] and move_of_slot [L, P], the move that fills a slot (-1 = unchanged).

    Columns of a move: layer, expert, source rank, target rank, slot on the source rank (-1 for a relay), relay_of (the
    move whose row a gateway passes on, or -1). One move per (layer, target rank, expert), however many slots want it.
    """
    layers, slots = old.shape
    ranks = slots // slots_per_rank
    nodes = node_of_rank.max() + 1
    moves = np.empty((layers * slots, 6), np.int32)
    move_of_slot = np.full((layers, slots), -1, np.int32)
    slot_of = np.full((ranks, num_experts), -1, np.int32)
    holders = np.empty((num_experts, ranks), np.int32)
    held = np.zeros(num_experts, np.int32)
    filled_by = np.full((ranks, num_experts), -1, np.int32)
    gateway = np.full((num_experts, nodes), NONE, np.int32)
    need = np.empty((slots, 2), np.int32)
    total = 0
    for layer in range(layers):
        # who holds what
        needed = 0
        for slot in range(slots):
            rank, expert = slot // slots_per_rank, old[layer, slot]
            if slot_of[rank, expert] < 0:
                slot_of[rank, expert] = slot - rank * slots_per_rank
                holders[expert, held[expert]] = rank
                held[expert] += 1
        # what every slot needs: once for a rank, from the rank itself where it holds the expert already
        for slot in range(slots):
            rank, expert = slot // slots_per_rank, new[layer, slot]
            if old[layer, slot] == expert:
                continue
            if filled_by[rank, expert] < 0:
                filled_by[rank, expert] = total
                moves[total, 0], moves[total, 1], moves[total, 2] = layer, expert, rank
                moves[total, 3], moves[total, 4], moves[total, 5] = rank, slot_of[rank, expert], NONE
                if slot_of[rank, expert] < 0:
                    need[needed, 0], need[needed, 1] = expert, rank
                    needed += 1
                total += 1
            move_of_slot[layer, slot] = filled_by[rank, expert]
        # the rest from other ranks, across nodes once and then from a gateway
        if needed:
            source = np.full(needed, -1, np.int32)
            relay_of = np.full(needed, NONE, np.int32)
            _choose_gateways(need[:needed], holders, held, node_of_rank, gateway)
            _choose_senders(need[:needed], holders, held, node_of_rank, gateway, source, relay_of)
            for index in range(needed):
                expert, rank = need[index, 0], need[index, 1]
                move = filled_by[rank, expert]
                moves[move, 2] = source[index]
                if relay_of[index] >= 0:
                    moves[move, 5] = filled_by[source[index], expert]
                else:
                    moves[move, 4] = slot_of[source[index], expert]
                gateway[expert, node_of_rank[rank]] = NONE
        # tables as they were, without clearing all of them
        for slot in range(slots):
            rank = slot // slots_per_rank
            slot_of[rank, old[layer, slot]] = -1
            filled_by[rank, new[layer, slot]] = -1
            held[old[layer, slot]] = 0
    return moves[:total].copy(), move_of_slot


@kernel
def _colour(pairs: Array, weight: Array, round_of: Array, busy: Array, first: int, ranks: int) -> int:
    """First-fit edge colouring, heaviest pairs first. Returns the number of the first unused round."""
    keys = np.empty(len(pairs), np.int64)
    heaviest = weight.max()
    for index in range(len(pairs)):
        pair = pairs[index]
        keys[index] = (heaviest - weight.flat[pair]) * ranks * ranks + pair
    last = first
    for key in np.sort(keys):
        pair = key % (ranks * ranks)
        one, other = pair // ranks, pair % ranks
        turn = 0
        while busy[turn, one] or busy[turn, other]:
            turn += 1
        busy[turn, one], busy[turn, other] = True, True
        round_of[one, other], round_of[other, one] = first + turn, first + turn
        last = max(last, first + turn + 1)
    busy[: last - first] = False
    return last


@kernel
def choose_rounds(moves: Array, num_layers: int, ranks: int) -> Array:
    """moves: as `choose_sources` made them, grouped by layer. -> [M] int32 round within the layer, LOCAL for own rows.

    First rounds from old holders, then rounds of relays. In a round, a rank exchanges rows with one other rank at most.
    """
    rounds = np.full(len(moves), LOCAL, np.int32)
    rows = np.zeros((ranks, ranks), np.int64)
    weight = np.zeros((ranks, ranks), np.int64)
    round_of = np.zeros((ranks, ranks), np.int32)
    busy = np.zeros((2 * ranks, ranks), np.bool_)
    pairs = np.empty(ranks * ranks, np.int64)
    begin = 0
    for layer in range(num_layers):
        end = begin
        while end < len(moves) and moves[end, 0] == layer:
            end += 1
        first = 0
        for relays in (False, True):
            # pairs of ranks, by the more rows that go one way
            found = 0
            for index in range(begin, end):
                source, target = moves[index, 2], moves[index, 3]
                if source == target or (moves[index, 5] >= 0) != relays:
                    continue
                one, other = min(source, target), max(source, target)
                if weight[one, other] == 0:
                    pairs[found] = one * ranks + other
                    found += 1
                rows[source, target] += 1
                weight[one, other] = max(rows[source, target], rows[target, source])
            if found == 0:
                continue
            first = _colour(pairs[:found], weight, round_of, busy, first, ranks)
            # a round for each, and the tables cleared
            for index in range(begin, end):
                source, target = moves[index, 2], moves[index, 3]
                if source != target and (moves[index, 5] >= 0) == relays:
                    rounds[index] = round_of[source, target]
            for pair in pairs[:found]:
                one, other = pair // ranks, pair % ranks
                rows[one, other], rows[other, one], weight[one, other] = 0, 0, 0
        begin = end
    return rounds
