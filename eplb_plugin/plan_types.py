"""What planning takes and gives. No algorithm here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import mismatch
from .placement import Placement
from .topology import Topology

Policy = Literal["deepseek", "balanced", "affinity"]
Dispatch = Literal["hash", "nearest"]


@dataclass(frozen=True)
class PlanOptions:
    """balance_tolerance: share by which a node's planned load may exceed the mean (affinity policy).
    max_moved_slots: slots per layer that may get another expert when `previous` is given; None = no bound.
    max_moved_slots_total: likewise, of all layers together.
    """

    balance_tolerance: float = 0.02
    max_moved_slots: int | None = None
    max_moved_slots_total: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.balance_tolerance <= 1.0:
            raise mismatch("balance_tolerance", found=self.balance_tolerance, expected="0.0..1.0", fix="pass a share")
        for name in ("max_moved_slots", "max_moved_slots_total"):
            bound = getattr(self, name)
            if bound is not None and bound < 0:
                raise mismatch(name, found=bound, expected=">= 0 or None", fix="raise it")


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement and how it is meant to be used.

    replica_weights: [L, P] float64, the planned share of its expert's tokens that a slot serves, summed over sources;
        the slots of one expert sum to 1.
    seconds: time the planner took.
    resolved_layers: layers that were solved afresh, not repaired from the previous placement.
    """

    placement: Placement
    topology: Topology
    dispatch: Dispatch
    replica_weights: NDArray[np.float64]
    seconds: float
    resolved_layers: int = 0

    @cached_property
    def digest(self) -> str:
        """Equal on two ranks only if placement, weights and rule are equal bit for bit."""
        state = hashlib.sha256(self.dispatch.encode())
        for array in (self.placement.phy2log, self.placement.layer_ids, self.replica_weights):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()[:16]
