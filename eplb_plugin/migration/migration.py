"""How far a migration is on one rank."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule
from .transfer import StagedLayer, Transfer


@dataclass
class Migration:
    """One under way. planned: done when all but the last three is known. progress: when a batch was last given to
    staging. staged: batches that have been filled, or are being filled, in order. committed: batches that are in force.
    """

    began: float
    planned: Future[None] = field(default_factory=Future)
    new: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    plan: Schedule | None = None
    transfer: Transfer | None = None
    batches: list[list[int]] = field(default_factory=list)
    digest: int = 0
    problem: str = ""
    progress: float = 0.0
    committed: int = 0
    staged: list[Future[list[StagedLayer]]] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """What went wrong on this rank."""
        return self.problem or (self.transfer.problem if self.transfer else "")

    @property
    def layers_committed(self) -> int:
        return sum(len(batch) for batch in self.batches[: self.committed])
