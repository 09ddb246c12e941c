"""One verdict for all ranks: the least that any of them can do, and why nothing may be done."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from eplb_plugin.migration.votes import PLANNING, Verdict, Vote, Votes
from processes import run_ranks

READY = Vote(staged=3, digest=(1 << 55) + 1, healthy=True, intact=True, idle=True)
LATE = replace(READY, staged=PLANNING, digest=None)
FORKED = "ranks were given different placements, tensors or budgets"
# votes of three ranks -> the verdict of all
CASES = [
    ((READY, READY, READY), Verdict(3, "", True, True)),
    ((READY, replace(READY, staged=1), replace(READY, idle=False)), Verdict(1, "", True, False)),
    ((READY, LATE, READY), Verdict(PLANNING, "", True, True)),
    ((LATE, replace(READY, digest=5), READY), Verdict(PLANNING, "", True, True)),  # told when all have planned
    ((READY, replace(READY, digest=5), READY), Verdict(3, FORKED, True, True)),
    ((READY, READY, replace(READY, digest=(1 << 55) + 2)), Verdict(3, FORKED, True, True)),
    ((READY, replace(READY, healthy=False), replace(READY, healthy=False)), Verdict(3, "rank 1 refused", True, True)),
    ((READY, READY, replace(LATE, healthy=False)), Verdict(PLANNING, "rank 2 refused", True, True)),
    ((replace(READY, intact=False, healthy=False), READY, READY), Verdict(3, "rank 0 refused", False, True)),
]


def counted() -> list[Verdict]:
    votes, found = Votes(dist.group.WORLD, 30.0), []
    for cast, _ in CASES:
        assert not votes.cast
        votes.send(cast[dist.get_rank()])
        assert votes.cast
        found.append(votes.count())
    return found


def test_every_rank_gets_the_same_verdict() -> None:
    """What all have staged; the first rank that is not well; plans that differ, once all ranks have one."""
    assert run_ranks(3, counted) == [[verdict for _, verdict in CASES]] * 3


def silent() -> bool:
    """Rank 1 votes too late."""
    votes = Votes(dist.new_group(timeout=timedelta(minutes=10)), 0.2)
    if dist.get_rank() == 0:
        votes.send(READY)
        with pytest.raises(RuntimeError):
            votes.count()
    else:
        time.sleep(1.0)
    return votes.cast


def test_a_rank_that_does_not_vote_is_not_waited_for() -> None:
    """The deadline of the votes, not the group's own of minutes; the vote is over then."""
    assert run_ranks(2, silent, timeout=30.0) == [False, False]
