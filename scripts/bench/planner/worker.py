"""One arm in its own process: reads one request a line, answers one line; what libraries print goes to stderr.

{"row": …, "file": …} plans once and writes the placement; {"again": n} plans n times and says what each took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np

from .arms import open_arm
from .rows import Row


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        open_row = open_arm(sys.argv[1])
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    answer(ready=True)
    call: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "row" in request:
                row = Row(**request["row"])
                solve, load = open_row(row), row.load()
                previous = np.asarray(solve(row.first_load(), None)) if row.drift else None
                before, began = _peak_memory(), time.process_time()
                placement = np.asarray(solve(load, previous))
                first = time.process_time() - began
                np.savez(request["file"], placement=placement, previous=placement if previous is None else previous)
                call = (solve, load, previous)
                answer(first=first, memory=_peak_memory() - before)
            else:
                answer(seconds=[_timed(*call) for _ in range(request["again"])])
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}".splitlines()[0])


def _timed(solve: Any, load: Any, previous: Any) -> float:
    began = time.process_time()
    solve(load, previous)
    return time.process_time() - began


def _peak_memory() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
