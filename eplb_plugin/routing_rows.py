"""When a token's row of top-k ids is a routing: one definition for readers, statistics and the recorder.

A row counts if it names an expert, wherever in the row, and none twice. Ids that are no expert's name nobody.
"""

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
    report_left_out(what, dropped, given)
    return np.where(repeated[..., None], -1, rows) if dropped else rows


def report_left_out(what: str, left_out: int, given: int) -> None:
    """One line in the log if more than a trace of the rows given were left out."""
    if left_out > TRACE * given:
        line = "%s: %d of %d rows (%.1f %%) name an expert twice, which no router does: they are left out"
        logger.warning(line, what, left_out, given, 100.0 * left_out / given)
