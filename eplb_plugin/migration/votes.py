"""All ranks say how far they are, and learn the same verdict at the same step."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

NOBODY = 1 << 62
PLANNING = -1


@dataclass(frozen=True)
class Vote:
    """staged: batches that this rank could commit, or PLANNING. digest: of what it is moving, None while it is planned.
    idle: nothing of it is in flight.
    """

    staged: int
    digest: int | None
    healthy: bool
    intact: bool
    idle: bool


@dataclass(frozen=True)
class Verdict:
    """staged: batches that every rank could commit, PLANNING if one has no plan yet. refused: why none may be committed
    any more, or empty.
    """

    staged: int
    refused: str
    intact: bool
    idle: bool


class Votes:
    """One vote at a time, on a CPU group that nobody else uses; it travels while the engine computes its next step."""

    def __init__(self, group: dist.ProcessGroup, seconds: float) -> None:
        self._group, self._deadline = group, timedelta(seconds=seconds)
        self._rank = dist.get_rank(group)
        self._open: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def cast(self) -> bool:
        return self._open is not None

    def send(self, vote: Vote) -> None:
        culprit = NOBODY if vote.healthy else self._rank
        digest, negative = (NOBODY, NOBODY) if vote.digest is None else (vote.digest, -vote.digest)
        fields = [vote.staged, digest, negative, culprit, int(vote.intact), int(vote.idle)]
        ballot = torch.tensor(fields, dtype=torch.int64)
        work = dist.all_reduce(ballot, op=dist.ReduceOp.MIN, group=self._group, async_op=True)
        self._open = ballot, work

    def count(self) -> Verdict:
        """Wait for the vote that was sent. Raises RuntimeError if a rank does not vote before the deadline."""
        assert self._open is not None
        ballot, work = self._open
        self._open = None
        work.wait(self._deadline)
        staged, digest, negative, culprit, intact, idle = ballot.tolist()
        refused = ""
        if culprit != NOBODY:
            refused = f"rank {culprit} refused"
        elif staged != PLANNING and digest != -negative:
            refused = "ranks were given different placements, tensors or budgets"
        return Verdict(staged, refused, bool(intact), bool(idle))
