"""How far a migration is on one rank."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .transfer import StagedLayer, Transfer


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
    """One under way. planned: done when all but the last three is known. progress: when a batch was last given to
    staging. staged: batches that have been filled, or are being filled, in order. committed: batches that are in force.
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

    def can_stage(self, number: int) -> bool:
        """Whether a batch reads nothing that another one is still to replace: a layer takes one hop at a time."""
        ahead = _layers(self.batches[self.committed : number])
        return ahead.isdisjoint(self.batches[number].layers)


def _layers(batches: Iterable[Batch]) -> set[int]:
    return {layer for batch in batches for layer in batch.layers}
