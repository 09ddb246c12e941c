"""Shared experts that an engine fuses with the routed ones: a column of ids beyond these, in every token's row.

SGLang (`--disable-shared-experts-fusion` turns it off) appends them to the top-k ids. No router chose them, and every
rank has them: they belong into no statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_ROWS = 64  # for telling such a column where the number of experts is not known


def shared_columns(ids: NDArray[Any], num_experts: int | None) -> NDArray[np.bool_]:
    """ids: [L, T, k], -1 = none -> [k] whether a column holds nothing but shared experts.

    num_experts: routed ones; None = not known: then the last column, if it has one id throughout, above all others.
    """
    top_k = ids.shape[2]
    found: NDArray[np.bool_] = np.zeros(top_k, bool)
    if num_experts is not None:
        given = ids >= 0
        found[:] = given.any((0, 1)) & (~given | (ids >= num_experts)).all((0, 1))
    elif top_k > 1 and len(ids) > 1:
        last, others = ids[:, :, -1], ids[:, :, :-1]
        valid = last[last >= 0]
        found[-1] = len(valid) >= LEAST_ROWS and valid.min() == valid.max() > others.max(initial=-1)
    return np.zeros(top_k, bool) if found.all() else found
