"""When a token's row of top-k ids is a routing: one definition for readers and statistics."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("eplb_plugin")
TRACE = 0.001  # share of rows that is no news


def name_twice(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """rows: [..., k] ids, -1 = none -> [...] whether an id stands twice in a row."""
    ordered = np.sort(rows, axis=-1)
    found: NDArray[np.bool_] = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(axis=-1)
    return found


def routed(rows: NDArray[Any], what: str) -> NDArray[Any]:
    """rows: [..., k] ids, -1 = none -> the same, but -1 throughout where an id stands twice.

    No router chooses an expert twice. Such rows are made by others: zeros in place of a prompt that another server
    prefilled, or of padding. Counted, they would make expert 0 the hottest. `what` names the rows in the log.
    """
    repeated = name_twice(rows)
    dropped, given = int(repeated.sum()), int((rows >= 0).any(axis=-1).sum())
    if not dropped:
        return rows
    if dropped > TRACE * given:
        line = "%s: %d of %d rows (%.1f %%) name an expert twice, which no router does: they are left out"
        logger.warning(line, what, dropped, given, 100.0 * dropped / given)
    return np.where(repeated[..., None], -1, rows)
