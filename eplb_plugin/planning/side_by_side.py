"""Layers side by side: each is solved by itself, in kernels that release the GIL, so that threads change no plan.

Only where a machine has cores to spare: a server plans beside its own engine, which must not wait for a core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CORES_A_THREAD = 4  # of those that this process may use; the engine has the others
MOST_THREADS = 8

Item = TypeVar("Item")
Solved = TypeVar("Solved")


def num_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, usable // CORES_A_THREAD))


def solve_each(solve: Callable[[Item], Solved], items: Sequence[Item]) -> list[Solved]:
    """`solve` of every item, in their order. The first item's error is raised, whatever the others do."""
    threads = min(num_threads(), len(items))
    if threads <= 1:
        return [solve(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="eplb-plugin-plan") as pool:
        return list(pool.map(solve, items))
