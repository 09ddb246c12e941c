"""How far a migration is on one rank."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .limits import Budget
from .transfer import StagedLayer, Transfer
from .votes import PLANNING, Vote


@dataclass(frozen=True, eq=False)
class Batch:
    """Layers that are staged, voted on and switched together. placed: [L, P], in force in them from then on.
    transfer: of all that is moved in the same hop.
    """

    layers: list[int]
    placed: NDArray[np.int32]
    transfer: Transfer


@dataclass
class Migration:
    """One under way.

    began: when.
    planned: done when `new`, `batches`, `digest` and `problem` are known.
    new: [L, P], the placement that it leads to.
    batches: what is switched together, in order.
    digest: of what the ranks must agree on.
    problem: why this rank cannot move; empty: it can.
    progress: when a batch was last given to staging.
    committed: batches that are in force.
    staged: batches that have been filled, or are being filled, in order.
    """

    began: float
    planned: Future[None] = field(default_factory=Future)
    new: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    batches: list[Batch] = field(default_factory=list)
    digest: int = 0
    problem: str = ""
    progress: float = 0.0
    committed: int = 0
    staged: list[Future[list[StagedLayer]]] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """What went wrong on this rank."""
        return self.problem or next(filter(None, (batch.transfer.problem for batch in self.batches)), "")

    @property
    def layers(self) -> set[int]:
        """All that change."""
        return _layers(self.batches)

    @property
    def layers_done(self) -> set[int]:
        """Those that have taken their last hop."""
        return self.layers - _layers(self.batches[self.committed :])

    def watch(self, budget: Budget) -> None:
        """Note what takes too long on this rank."""
        if not self.planned.done():
            what, since, seconds = "planning", self.began, budget.planning_seconds
        elif not all(future.done() for future in self.staged):
            what, since, seconds = "staging", self.progress, budget.vote_seconds
        else:
            return
        if time.monotonic() - since > seconds:
            self.problem = self.problem or f"{what} takes longer than {seconds} s"

    def vote(self, intact: bool) -> Vote:
        """How far it is. intact: the wires are."""
        planned, done = self.planned.done(), [future.done() for future in self.staged]
        staged = done.index(False) if False in done else len(done)
        return Vote(
            staged=staged if planned else PLANNING,
            digest=self.digest if planned else None,
            healthy=not self.reason,
            intact=intact,
            idle=planned and all(done),
        )

    def can_stage(self, number: int) -> bool:
        """Whether a batch reads nothing that another one is still to replace: a layer takes one hop at a time."""
        ahead = _layers(self.batches[self.committed : number])
        return ahead.isdisjoint(self.batches[number].layers)


def _layers(batches: Iterable[Batch]) -> set[int]:
    return {layer for batch in batches for layer in batch.layers}
