"""Who sends what to whom, and in which round: each guarantee of `schedule`'s docstring against a plain reading."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from numpy.typing import NDArray

from eplb_plugin import Topology
from eplb_plugin.migration.routes import LOCAL, choose_rounds, choose_sources
from strategies import QUICK, migrations

Case = tuple[NDArray[np.int32], NDArray[np.int32], Topology]


class Move(NamedTuple):
    layer: int
    expert: int
    source: int
    target: int
    slot: int
    relay_of: int
    round: int


def routes(case: Case) -> tuple[list[Move], NDArray[np.int32]]:
    old, new, topology = case
    experts = int(max(old.max(), new.max())) + 1
    moves, move_of_slot = choose_sources(old, new, experts, topology.node_of_rank, topology.slots_per_rank)
    rounds = choose_rounds(moves, len(old), topology.num_ranks)
    return [Move(*map(int, row), turn) for row, turn in zip(moves, rounds.tolist(), strict=True)], move_of_slot


def holders(case: Case, move: Move) -> set[int]:
    old, _, topology = case
    return set(topology.rank_of_slot[old[move.layer] == move.expert].tolist())


@given(migrations())
@QUICK
def test_every_changed_slot_is_filled_with_its_expert(case: Case) -> None:
    """By one move per rank and expert, however many slots want it, from a slot that holds it or by a relay."""
    old, new, topology = case
    moves, move_of_slot = routes(case)
    wanted = set()
    for (layer, slot), expert in np.ndenumerate(new):
        number, rank = int(move_of_slot[layer, slot]), int(topology.rank_of_slot[slot])
        assert (number >= 0) == (old[layer, slot] != expert)
        if number >= 0:
            assert moves[number][:2] == (layer, expert)
            assert moves[number].target == rank
            wanted.add((layer, rank, int(expert)))
    assert Counter((move.layer, move.target, move.expert) for move in moves) == Counter(wanted)
    for move in moves:
        if move.relay_of < 0:
            assert old[move.layer, move.source * topology.slots_per_rank + move.slot] == move.expert
        else:
            gateway = moves[move.relay_of]
            assert (gateway.layer, gateway.expert, gateway.target) == (move.layer, move.expert, move.source)
            assert move.slot == -1


@given(migrations())
@QUICK
def test_nearest_source_and_one_crossing(case: Case) -> None:
    """Same rank before same node before another node; an expert that a node lacks enters it once."""
    node = case[2].node_of_rank
    crossings: Counter[tuple[int, int, int]] = Counter()
    for move in routes(case)[0]:
        held = holders(case, move)
        in_node = {rank for rank in held if node[rank] == node[move.target]}
        assert (move.round == LOCAL) == (move.source == move.target) == (move.target in held)
        if in_node:
            assert move.source in in_node
        elif move.relay_of < 0:
            assert move.source in held
            crossings[move.layer, move.expert, int(node[move.target])] += 1
        else:
            assert node[move.source] == node[move.target]
    assert all(count == 1 for count in crossings.values())


@given(migrations())
@QUICK
def test_senders_are_balanced(case: Case) -> None:
    """No row could be sent by another holder (as near) that sends two rows fewer."""
    node = case[2].node_of_rank
    direct = [move for move in routes(case)[0] if move.round != LOCAL and move.relay_of < 0]
    sends = Counter((move.layer, move.source) for move in direct)
    for move in direct:
        near = node[move.source] == node[move.target]
        for other in holders(case, move):
            if not near or node[other] == node[move.target]:
                assert sends[move.layer, move.source] <= sends[move.layer, other] + 1


@given(migrations())
@QUICK
def test_one_peer_a_round(case: Case) -> None:
    """In a round a rank exchanges rows with one other rank at most; rounds number at most 2d - 1 in each half."""
    peers: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    halves: dict[tuple[int, bool], set[int]] = defaultdict(set)
    neighbours: dict[tuple[int, bool, int], set[int]] = defaultdict(set)
    for move in routes(case)[0]:
        if move.round == LOCAL:
            continue
        half = move.layer, move.relay_of >= 0
        halves[half].add(move.round)
        for one, other in ((move.source, move.target), (move.target, move.source)):
            peers[move.layer, move.round, one].add(other)
            neighbours[*half, one].add(other)
    assert all(len(found) == 1 for found in peers.values())
    for (layer, relays), turns in halves.items():
        most = max(len(found) for key, found in neighbours.items() if key[:2] == (layer, relays))
        assert len(turns) <= 2 * most - 1
        assert not relays or min(turns) > max(halves.get((layer, False), {LOCAL}))


def test_copies_share_the_work() -> None:
    """One expert, held by two ranks and wanted by four more: two sends each."""
    old, new = [0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2], [0, 0, 1, 2, 3, 4, 0, 2, 3, 0, 0, 0]
    case = np.array([old], np.int32), np.array([new], np.int32), Topology(1, 12, 1)
    assert Counter(move.source for move in routes(case)[0]) == {0: 2, 1: 2}


def test_heavy_pairs_meet_in_the_same_rounds() -> None:
    """Of a triangle of ranks, in which each pair needs a round of its own, the pair with most rows meets first."""
    sends = [(0, 1, 0, 1), (0, 2, 0, 2), (0, 3, 1, 2), (0, 4, 1, 2), (0, 5, 2, 1), (0, 6, 0, 2), (0, 7, 1, 2)]
    moves = np.array([(*send, 0, -1) for send in sends], np.int32)
    rounds: dict[Any, set[int]] = defaultdict(set)
    for (_, _, source, target), turn in zip(sends, choose_rounds(moves, 1, 3).tolist(), strict=True):
        rounds[frozenset((source, target))].add(turn)
    assert rounds == {frozenset((1, 2)): {0}, frozenset((0, 2)): {1}, frozenset((0, 1)): {2}}
