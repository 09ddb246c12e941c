"""What may happen in one step: how many layers change, and how many bytes; and the memory that rows pass through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from ..errors import mismatch
from ..settings.sections import STAGING_BYTES, MigrationConfig
from .hops import least_rows
from .schedule import Schedule

_DEFAULT = MigrationConfig()


@dataclass(frozen=True)
class Budget:
    """Bounds of one step, and deadlines.

    layers_per_step, bytes_per_step: at most so many layers are switched on a step, and (unless one layer alone needs
    more) so many bytes copied on any rank; None = one layer's worth of this rank's experts.
    message_bytes: rows travel in messages of at most this size (at least one expert).
    staging_bytes: memory of a rank for all rows on their way, received and sent; None = STAGING_BYTES, or the least
    that there can be. What does not fit of a layer is moved in several hops.
    planning_seconds: a plan that takes longer is refused.
    transfer_seconds: a message that takes longer breaks the migration off, and the old placement serves on.
    vote_seconds: a rank that does not vote for so long ends the others: longer than the slowest step of the engine.
    """

    layers_per_step: int = _DEFAULT.layers_per_step
    bytes_per_step: int | None = _DEFAULT.bytes_per_step
    message_bytes: int = 128 << 20  # no setting; three experts of DeepSeek-V3
    staging_bytes: int | None = _DEFAULT.staging_bytes
    planning_seconds: float = _DEFAULT.planning_seconds
    transfer_seconds: float = _DEFAULT.transfer_seconds
    vote_seconds: float = 300.0  # as long as either engine's own patience is by default

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise mismatch(f"budget.{name}", found=value, expected="more than 0", fix="set a positive bound")


class Rows(NamedTuple):
    """Experts for which there is memory: in one half of the staging, and in one buffer for an outgoing message."""

    staged: int
    sent: int


def share_memory(budget: Budget, row_bytes: int, slots_per_rank: int, *, halves: int, buffers: int) -> Rows:
    """Divide `staging_bytes` among the halves, which get at most a layer each, and the buffers, at most a quarter.

    row_bytes: of the widest layer's rows. Raises PluginError if the memory is too little to move any experts.
    """
    least = halves * least_rows(slots_per_rank) + buffers
    bound = max(STAGING_BYTES, least * row_bytes) if budget.staging_bytes is None else budget.staging_bytes
    rows = bound // row_bytes
    if rows < least:
        expected = f"at least {least * row_bytes}, {least} experts of {row_bytes} bytes"
        raise mismatch("migration.staging_bytes", found=bound, expected=expected, fix="raise it, or leave it out")
    sent = max(1, min(budget.message_bytes // row_bytes, rows // (4 * buffers), slots_per_rank))
    return Rows(min((rows - buffers * sent) // halves, slots_per_rank), sent)


def batches(plan: Schedule, row_bytes: Sequence[int], budget: Budget, capacity: int) -> list[list[int]]:
    """Layers that are staged, voted on and switched together, in order; layers without a change are in none.

    capacity: bytes of staging; no layer stages more. The same on every rank: what counts is the rank that stages most.
    """
    bound = capacity if budget.bytes_per_step is None else min(capacity, budget.bytes_per_step)
    staged = plan.staged_rows * np.asarray(row_bytes, np.int64)[:, None]
    found: list[list[int]] = []
    filled = np.zeros(plan.topology.num_ranks, np.int64)
    for layer in plan.changed_layers:
        fits = found and len(found[-1]) < budget.layers_per_step and (filled + staged[layer]).max() <= bound
        if fits:
            found[-1].append(layer)
            filled += staged[layer]
        else:
            found.append([layer])
            filled = staged[layer].copy()
    return found
