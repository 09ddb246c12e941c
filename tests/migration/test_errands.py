"""What every rank has to do, carried out in one process: messages meet, arrive in order and fill the right slots."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.migration.errands import Errand, Errands, Numbers
from eplb_plugin.migration.schedule import schedule
from strategies import QUICK, migrations


def test_numbers_are_found_again() -> None:
    """Whatever was kept lies at the place that was returned, also where there was nothing to keep."""
    numbers, parts = Numbers(), [np.array([3, 1], np.int32), np.empty(0, np.int32), np.array([-7], np.int64)]
    places = [numbers.keep(part) for part in parts]
    kept = numbers.all()
    assert kept.dtype == np.int64
    assert [kept[place].tolist() for place in places] == [part.tolist() for part in parts]


class Rank:
    """One rank's way through one layer. slots: what it holds; a message is a list of (expert, identity)."""

    def __init__(self, errand: Errand, numbers: Any, slots: list[int], post: Any, rank: int) -> None:
        self.errand, self.numbers, self.slots, self.post, self.rank = errand, numbers, slots, post, rank
        self.rows: list[Any] = [(slots[slot], None) for slot in numbers[errand.own_slots]]
        assert len(self.rows) == errand.own
        self.rows += [None] * (errand.count - errand.own)
        self.turn, self.sent = 0, False

    def step(self) -> bool:
        """Send, or take what has come; whether anything was done."""
        if self.turn == len(self.errand.exchanges):
            return False
        exchange = self.errand.exchanges[self.turn]
        if not self.sent:
            places = self.numbers[exchange.rows]
            experts = [self.rows[place][0] if exchange.relayed else self.slots[place] for place in places]
            assert len(experts) == exchange.count
            message = list(zip(experts, self.numbers[exchange.identity].tolist(), strict=True))
            self.post[self.rank, exchange.peer].append(message)
            self.sent = True
            return True
        if not self.post[exchange.peer, self.rank]:
            return False
        message = self.post[exchange.peer, self.rank].popleft()
        assert len(message) == exchange.last - exchange.first
        self.rows[exchange.first : exchange.last] = message
        self.turn, self.sent = self.turn + 1, False
        return True

    def end(self) -> list[int]:
        errand = self.errand
        assert [identity for _, identity in self.rows[errand.own :]] == self.numbers[errand.identity].tolist()
        result = list(self.slots)
        for row, slot in enumerate(self.numbers[errand.slots]):
            result[slot] = self.rows[row][0]
        for row, slot in zip(self.numbers[errand.more_rows], self.numbers[errand.more], strict=True):
            result[slot] = self.rows[row][0]
        return result


@given(migrations(), st.integers(1, 4))
@QUICK
def test_all_errands_together_turn_old_into_new(case: Any, most: int) -> None:
    """No rank waits for a message that does not come, none is larger than fits, and each is what it says it is."""
    old, new, topology = case
    plan = schedule(old, new, topology)
    size, ranks = topology.slots_per_rank, range(topology.num_ranks)
    errands = [Errands(plan, rank, serial=7) for rank in ranks]
    for layer in range(len(old)):
        post: Any = defaultdict(deque)
        workers = []
        for rank in ranks:
            numbers = Numbers()
            errand = errands[rank].errand(layer, most, numbers)
            assert all(exchange.count <= most for exchange in errand.exchanges)
            held = old[layer, rank * size : (rank + 1) * size].tolist()
            workers.append(Rank(errand, numbers.all(), held, post, rank))
        while any([worker.step() for worker in workers]):
            pass
        assert not any(post.values())
        assert all(worker.turn == len(worker.errand.exchanges) for worker in workers)
        assert [expert for worker in workers for expert in worker.end()] == new[layer].tolist()


def test_rows_of_other_layers_and_migrations_have_other_identities() -> None:
    """So that good bytes of the wrong layer, or of an earlier migration, break a seal."""
    old = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    plan = schedule(old, np.roll(old, 3, axis=1), Topology(1, 2, 3))
    found: list[int] = []
    for serial in (1, 2):
        for layer in range(3):
            numbers = Numbers()
            errand = Errands(plan, 0, serial).errand(layer, 8, numbers)
            found += numbers.all()[errand.identity].tolist()
    assert len(found) == 18
    assert len(set(found)) == 18
