"""In a server's ranks, where EPLB_EXACT names a folder: how a layer's tokens were sent, and what ranks then served.

Every call of what maps a layer's ids is a line: whether the step was evened out, and the selections by serving rank.
The name of a signal in the control file strikes rank 1 in its next exchange.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from eplb_fault_switch import wanted

FOLDER = "EPLB_EXACT"


def install(mapper: Any, rank: Callable[[], int]) -> None:
    """mapper: the class whose instances map ids of their layer, by its `exact`."""
    if FOLDER not in os.environ:
        return
    from eplb_plugin.engines import exchange
    from eplb_plugin.engines.exchange import GroupExchange

    folder = Path(os.environ[FOLDER])
    folder.mkdir(exist_ok=True)
    mapped, choose, exchanged = mapper.__call__, exchange.choose, GroupExchange.__call__
    evened: list[bool] = []

    def chosen(*args: Any) -> Any:
        evened.append(True)
        return choose(*args)

    def seen(self: Any, *args: Any) -> Any:
        evened.clear()
        slots, layer = mapped(self, *args), self.exact.layer
        serving = slots.numpy()[slots.numpy() >= 0] // layer.slots_per_rank
        served = np.bincount(serving, minlength=len(layer.node_of_rank))
        with (folder / f"rank{rank()}.jsonl").open("a") as file:
            file.write(json.dumps({"exact": bool(evened), "served": served.tolist()}) + "\n")
        return slots

    def struck(self: Any, mine: Any) -> Any:
        for name in wanted() if rank() == 1 else ():
            os.kill(os.getpid(), signal.Signals[name])
        return exchanged(self, mine)

    mapper.__call__, exchange.choose, GroupExchange.__call__ = seen, chosen, struck
