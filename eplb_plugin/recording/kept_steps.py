"""Loads of single steps of a window. Which steps are kept their numbers alone tell, so that all ranks keep the same.

Numbers count every step of a window, on idle ranks too: engines end a step on all ranks or on none. How long a window
will be is not known. So all steps are kept until there is no place left; then every second, every fourth … takes the
place of one between them: at any time the whole window is covered, evenly to a factor of two. Large and small steps are
kept alike: who reads them adds loads up, so that a large one weighs more, as it does in time.
"""

from __future__ import annotations

import torch

from ..counts import MOST_STEPS


class KeptSteps:
    """Of one rank. loads: [MOST_STEPS, L, E] int32, at a fixed address; numbers: of the step in each place that is
    filled; over: steps of the window so far. All but the loads is the host's."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.loads = torch.zeros(MOST_STEPS, num_layers, num_experts, dtype=torch.int32, device=device)
        self.numbers: list[int] = []
        self.over, self._apart = 0, 1

    def add(self, load: torch.Tensor | None) -> None:
        """A step is over. load: [L, E] that this rank has counted in it; None: it was idle."""
        place = self._place()
        if place is None:
            return
        if load is None:
            self.loads[place].zero_()
        else:
            self.loads[place].copy_(load)

    def reset(self) -> None:
        """Begin a new window."""
        self.numbers.clear()
        self.over, self._apart = 0, 1

    def _place(self) -> int | None:
        """Where the step belongs that is over now; None: nowhere."""
        number, self.over = self.over, self.over + 1
        if number == MOST_STEPS * self._apart:
            self._apart *= 2
        if number % self._apart:
            return None
        for place, kept in enumerate(self.numbers):
            if kept % self._apart:
                self.numbers[place] = number
                return place
        self.numbers.append(number)
        return len(self.numbers) - 1
