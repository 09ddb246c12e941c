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
Dispatch = Literal["hash", "nearest", "weighted", "cover"]


@dataclass(frozen=True)
class PlanOptions:
    """balance_tolerance: share by which a node's planned load may exceed the mean (affinity policy).
    max_moved_slots: slots per layer that may get another expert when `previous` is given; None = no bound.
    """

    balance_tolerance: float = 0.02
    max_moved_slots: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.balance_tolerance <= 1.0:
            raise mismatch("balance_tolerance", found=self.balance_tolerance, expected="0.0..1.0", fix="pass a share")
        if self.max_moved_slots is not None and self.max_moved_slots < 0:
            raise mismatch("max_moved_slots", found=self.max_moved_slots, expected=">= 0 or None", fix="raise it")


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement and how it is meant to be used.

    replica_weights: [L, P] float64, the planned share of its expert's tokens that a slot serves, summed over sources;
        the slots of one expert sum to 1.
    seconds: time the planner took.
    source_weights: [nodes, L, P] float64 for rule `weighted`: the share of a source node's tokens of an expert that a
        slot serves; None: the replica weights, from everywhere.
    cover_weights: [L, P] int32 >= 1 for rule `cover`: in which proportion a token picks among the copies within its
        reach; None: in proportion to the replica weights.
    """

    placement: Placement
    topology: Topology
    dispatch: Dispatch
    replica_weights: NDArray[np.float64]
    seconds: float
    source_weights: NDArray[np.float64] | None = None
    cover_weights: NDArray[np.int32] | None = None

    @cached_property
    def digest(self) -> str:
        """Equal on two ranks only if placement, weights and rule are equal bit for bit."""
        state = hashlib.sha256(self.dispatch.encode())
        weights = (self.replica_weights, self.source_weights, self.cover_weights)
        for array in (self.placement.phy2log, self.placement.layer_ids, *weights):
            state.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return state.hexdigest()[:16]
