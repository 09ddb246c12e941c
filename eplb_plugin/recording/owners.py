"""Ranks that route the same tokens must have recorded the same: else the groups are not what the layers say.

Nearly the same: what they compute before the router may differ in its last bit (an all-reduce without a fixed order),
and then, now and then, a token goes to another expert on one of them. The first rank's counts are used.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import mismatch
from .recorder import Recorder

logger = logging.getLogger("eplb_plugin")
TOLERATED = 0.01  # of what is compared; ranks that route other tokens differ in nearly all of it
COMPARED = 512  # tokens recorded last, each in one layer


def token_marks(recorder: Recorder) -> torch.Tensor:
    """[COMPARED] int64, a number for the experts of one layer of each token that was recorded last."""
    token, layers = torch.arange(COMPARED, device=recorder.load.device), len(recorder.load)
    rows = recorder.sample[token % layers, recorder.newest_slots(COMPARED)]
    return (rows.to(torch.int64) + 2).pow(4).sum(1)  # in whichever order the router names them


def differing_tokens(marks: NDArray[np.int64], group_size: int) -> NDArray[np.int64]:
    """marks: [ranks, COMPARED] -> [ranks] tokens that differ from those of the first rank of the group."""
    groups = _grouped(marks, group_size)
    return (groups != groups[:, :1]).sum(2).ravel()


def moved_selections(load: NDArray[np.int64], group_size: int) -> NDArray[np.int64]:
    """load: [ranks, experts] -> [ranks] selections that the first rank of the group made elsewhere."""
    groups = _grouped(load, group_size)
    return np.abs(groups - groups[:, :1]).sum(2).ravel() // 2


def _grouped(rows: NDArray[np.int64], group_size: int) -> NDArray[np.int64]:
    return rows.reshape(len(rows) // group_size, group_size, rows.shape[1])


def refuse_unequal_owners(
    tokens: NDArray[np.int64], differing: NDArray[np.int64], compared: NDArray[np.int64], group_size: int
) -> None:
    """Each [ranks]: tokens recorded; what differs from the group's first rank, and of how much.

    Raises PluginError beyond what rounding explains; below, warns once of each group.
    """
    first = tokens.reshape(-1, group_size)[:, :1].repeat(group_size, axis=1).ravel()
    others = (tokens != first) | (differing > np.maximum(1, TOLERATED * compared))
    if others.any():
        raise mismatch(
            f"token-owner group {int(others.argmax()) // group_size}",
            found="ranks that recorded different routing",
            expected=f"{group_size} ranks that route the same tokens",
            fix="report the model and its parallel layout; this one cannot be planned for",
        )
    for rank in np.flatnonzero(differing).tolist():
        _warn(rank // group_size)


@cache
def _warn(group: int) -> None:
    line = "token-owner group %d: its ranks route a few tokens (up to %.0f %%) differently; the first one's count"
    logger.warning(line, group, 100 * TOLERATED)
