"""CPU time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def milliseconds(call: Callable[[], Any], times: int) -> float:
    """CPU time, which other processes do not lengthen: median of several, after one that may compile."""
    call()
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(1e3 * (time.process_time() - began))
    return median(taken)
