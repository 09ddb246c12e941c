"""Staging: rows that arrive as they were, and whatever fails, a word about it instead of an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin import Topology
from eplb_plugin.migration import transfer
from eplb_plugin.migration.layout import ExpertRows
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.schedule import schedule
from eplb_plugin.migration.transfer import Transfer
from eplb_plugin.migration.wires.group import GroupWires
from expert_models import Model
from processes import Ranks

PLACES = Topology(1, 2, 4)
# rank 0 moves a row of its own and gets two, one of them twice; rank 1 gets two; the second layer stays
OLD = np.array([[0, 1, 2, 3, 4, 5, 0, 1]] * 2, np.int32)
NEW = np.array([[4, 0, 4, 5, 2, 5, 3, 1], [0, 1, 2, 3, 4, 5, 0, 1]], np.int32)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(PLACES.num_ranks) as ranks:
        yield ranks


def opened() -> tuple[Model, Transfer]:
    """With messages of one row each."""
    model = Model(OLD, PLACES.slots_per_rank)
    rows = model.rows()
    wires = GroupWires(dist.new_group(), rows, Budget(message_bytes=1, transfer_seconds=20.0))
    wires.meet()
    return model, Transfer(schedule(OLD, NEW, PLACES), rows, wires, serial=3)


def staged_and_written() -> str:
    model, moving = opened()
    staged = moving.settle(moving.stage([0, 1], 1))
    model.check()  # nothing is written before the vote
    assert [one.layer for one in staged] == [0, 1]
    for one in staged:
        one.write(moving.layers[one.layer])
    model.phy2log = NEW.copy()
    model.check()
    return moving.problem


def test_rows_that_are_written_hold_the_new_experts(two: Ranks) -> None:
    """Own rows, received ones, and an expert that is twice on a rank; a layer without a change stays."""
    assert two.run(staged_and_written) == ["", ""]


FAULTS: dict[str, tuple[Any, str]] = {
    "read": (ExpertRows, "read"),
    "seal": (transfer, "seal"),
    "damage": (transfer, "seal"),
    "broken": (transfer, "broken"),
    "start": (GroupWires, "start"),
}


def failing(what: str) -> str:
    """Rank 1 fails the first time in one thing; -> what this rank says of it."""
    model, moving = opened()
    owner, name = FAULTS[what]
    original: Callable[..., Any] = getattr(owner, name)
    struck = dist.get_rank() == 0

    def once(*args: Any) -> Any:
        nonlocal struck
        first, struck = not struck, True
        if first and what != "damage":
            raise OSError("out\nof reach")
        result = original(*args)
        if first:
            args[0][0, 5] ^= 1
        return result

    setattr(owner, name, once)
    try:
        moving.wires.deadline = timedelta(seconds=0.3 if what == "start" else 20.0)
        moving.settle(moving.stage([0, 1], 0))
    finally:
        setattr(owner, name, original)
    model.check()  # the old weights
    assert moving.wires.intact == (what != "start")
    return moving.problem


DIFFERS = "checking: layer 0: 1 of 2 rows differ from their source, first expert 4 from rank 1"


@pytest.mark.parametrize(
    ("what", "here", "there"),
    [
        ("read", "reading: OSError: out of reach", DIFFERS),
        ("seal", "reading: OSError: out of reach", DIFFERS),
        ("damage", "", DIFFERS),
        ("broken", "checking: OSError: out of reach", ""),
        ("start", "exchanging rows: OSError: out of reach", "exchanging rows: RuntimeError: "),
    ],
)
def test_what_fails_changes_no_weight(two: Ranks, what: str, here: str, there: str) -> None:
    """One line on the rank that failed; the other gets its messages all the same, and sees what is wrong with them."""
    other, failed = two.run(failing, what)
    assert failed == here
    assert other.startswith(there) if there.endswith(": ") else other == there
    assert "\n" not in other
