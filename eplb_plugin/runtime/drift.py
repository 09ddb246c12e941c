"""When a placement no longer serves as it was planned to: what windows between rebalances say of it.

A window counts against the placement if its ranks are less even than planned, by more than a bound and more than
chance explains. Chance: planned loads and those of the window are counts. A placement that fits the counts that it was
made from is less even on others of the same traffic, so what was planned is told by other draws of the planned loads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..plan_types import Plan
from ..planning.score import balancedness, expected_rank_load

DRAWS = 8  # 6 ms of one core for 58 layers × 256 experts on 32 ranks


class Shortfall(NamedTuple):
    """Of windows in a row: mean balancedness, and what was planned for the last one's number of tokens."""

    served: float
    planned: float
    windows: int

    def __str__(self) -> str:
        return f"balancedness {self.served:.2f} in {self.windows} windows, planned {self.planned:.2f}"


@dataclass(eq=False)
class Drift:
    """Of one model, on the planning rank. bound: what balancedness may fall by; windows: how many in a row make a
    shortfall. Windows too small for the bound, whose counts alone cost more, say nothing.
    """

    bound: float
    windows: int

    def __post_init__(self) -> None:
        self._planned: tuple[NDArray[np.float64], Plan] | None = None
        self._served: deque[float] = deque(maxlen=self.windows)  # of the newest windows, all of which fell short

    def planned(self, load: NDArray[np.float64], plan: Plan) -> None:
        """A rebalance: experts will lie as in `plan`, made for a load of [L, E]."""
        self._planned = load, plan
        self._served.clear()

    def served(self, load: NDArray[np.float64], plan: Plan) -> Shortfall | None:
        """A window has ended: its load and the plan in force, where experts lie as planned and shares may be newer."""
        if self._planned is None:
            return None
        fit, expected = self._expected(load)
        if fit - expected > self.bound:
            return None
        found = balancedness(expected_rank_load(load, plan))
        if found >= expected - self.bound:
            self._served.clear()
            return None
        self._served.append(found)
        if len(self._served) < self.windows:
            return None
        return Shortfall(float(np.mean(self._served)), expected, self.windows)

    def _expected(self, load: NDArray[np.float64]) -> tuple[float, float]:
        """Balancedness of the planned loads, and of others like them in a window with as many selections as `load`."""
        assert self._planned is not None
        wanted, plan = self._planned
        known, seen = (np.asarray(one, np.float64).sum(axis=1, keepdims=True) for one in (wanted, load))
        # two counts of one traffic differ as much as one of fewer tokens does from the truth
        size = known * seen / np.maximum(known + seen, 1.0)
        means = wanted / np.maximum(known, 1.0) * size
        random = np.random.default_rng(0)
        drawn = [balancedness(expected_rank_load(random.poisson(means), plan)) for _ in range(DRAWS)]
        return balancedness(expected_rank_load(wanted, plan)), float(np.mean(drawn))
