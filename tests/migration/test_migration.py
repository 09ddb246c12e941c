"""How far a migration is, as a rank says it in its votes, and what may be staged next."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eplb_plugin import Topology
from eplb_plugin.migration.limits import Budget
from eplb_plugin.migration.migration import Batch, Migration
from eplb_plugin.migration.schedule import schedule
from eplb_plugin.migration.transfer import Transfer
from eplb_plugin.migration.votes import PLANNING, Vote

PLACED = np.zeros((4, 2), np.int32)


def transfer() -> Transfer:
    slots = np.zeros((4, 2), np.int32)
    wires: Any = SimpleNamespace(rank=0)  # nothing travels here
    return Transfer(schedule(slots, slots, Topology(1, 2, 1)), [], wires, serial=1)


def under_way(*batches: list[int], planned: bool = True) -> Migration:
    moving = Migration(began=time.monotonic(), digest=9)
    moving.batches = [Batch(layers, PLACED, transfer()) for layers in batches]
    if planned:
        moving.planned.set_result(None)
    return moving


def done(value: bool) -> Future[Any]:
    future: Future[Any] = Future()
    if value:
        future.set_result([])
    return future


@pytest.mark.parametrize(
    ("planned", "staged", "vote"),
    [
        (False, [], Vote(PLANNING, None, True, True, False)),
        (True, [], Vote(0, 9, True, True, True)),
        (True, [True, True], Vote(2, 9, True, True, True)),
        (True, [True, False], Vote(1, 9, True, True, False)),
        (True, [False, True], Vote(0, 9, True, True, False)),  # batches are committed in order
    ],
)
def test_a_vote_counts_the_batches_that_could_be_committed(planned: bool, staged: list[bool], vote: Vote) -> None:
    """In their order, none before the plan is known; idle is who has nothing in flight."""
    moving = under_way([0], [1], planned=planned)
    moving.staged = [done(value) for value in staged]
    assert moving.vote(intact=True) == vote
    assert not moving.vote(intact=False).intact


def test_what_went_wrong_first_is_the_reason() -> None:
    """Its own problem, else that of the first batch's transfer that has one; and the vote says so."""
    moving = under_way([0], [1], [2])
    assert moving.reason == ""
    moving.batches[2].transfer.problem = "late"
    moving.batches[1].transfer.problem = "early"
    assert moving.reason == "early"
    assert not moving.vote(intact=True).healthy
    moving.problem = "own"
    assert moving.reason == "own"


def test_layers_are_done_after_their_last_hop() -> None:
    """A layer that takes two hops is not done while the second is ahead."""
    moving = under_way([0, 1], [2], [1, 3])
    assert moving.layers == {0, 1, 2, 3}
    assert moving.layers_done == set()
    moving.committed = 1
    assert moving.layers_done == {0}
    moving.committed = 3
    assert moving.layers_done == moving.layers


def test_a_layers_next_hop_waits_for_the_one_before() -> None:
    """It reads what the one before is still to write; other layers need not wait."""
    moving = under_way([0, 1], [2], [1, 3])
    assert moving.can_stage(0)
    assert moving.can_stage(1)
    assert not moving.can_stage(2)
    moving.committed = 1
    assert moving.can_stage(2)


BUDGET = Budget(planning_seconds=50.0, vote_seconds=80.0)


@pytest.mark.parametrize(
    ("planned", "staged", "began", "progress", "problem"),
    [
        (False, [], 1.0, 0.0, ""),
        (False, [], 51.0, 0.0, "planning takes longer than 50.0 s"),
        (True, [False], 999.0, 1.0, ""),  # what counts is when it was last given something to stage
        (True, [True, False], 999.0, 81.0, "staging takes longer than 80.0 s"),
        (True, [True, True], 999.0, 999.0, ""),  # other ranks are waited for by the votes
    ],
)
def test_what_takes_too_long_is_a_problem(
    planned: bool, staged: list[bool], began: float, progress: float, problem: str
) -> None:
    """Planning and staging have bounds of their own; seconds are since it began, or last made progress."""
    moving, now = under_way([0], [1], planned=planned), time.monotonic()
    moving.staged = [done(value) for value in staged]
    moving.began, moving.progress = now - began, now - progress
    moving.watch(BUDGET)
    assert moving.problem == problem
    moving.problem = "before"
    moving.watch(BUDGET)
    assert moving.problem == "before"
