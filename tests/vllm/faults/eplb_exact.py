"""In a server's workers, where EPLB_EXACT names a folder: how a layer's tokens were sent, and what ranks then served.

Every call of the hook is a line: whether the step was evened out, and the selections by serving rank. The name of a
signal in the control file strikes rank 1 in its next exchange.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from eplb_fault_switch import wanted


def install(folder: Path) -> None:
    from vllm.distributed.parallel_state import get_ep_group

    from eplb_plugin.engines.exchange import GroupExchange
    from eplb_plugin.engines.vllm import dispatch_hook

    folder.mkdir(exist_ok=True)
    mapped, choose, exchange = dispatch_hook.MappedLayer.__call__, dispatch_hook.choose, GroupExchange.__call__
    evened: list[bool] = []

    def chosen(*args: Any) -> Any:
        evened.append(True)
        return choose(*args)

    def seen(self: Any, original: Any, ids: Any, load: Any, *args: Any) -> Any:
        evened.clear()
        slots, group = mapped(self, original, ids, load, *args), get_ep_group()
        serving = slots.numpy().ravel() // (len(load) // group.world_size)
        line = {"exact": bool(evened), "served": np.bincount(serving, minlength=group.world_size).tolist()}
        with (folder / f"rank{group.rank_in_group}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return slots

    def struck(self: Any, mine: Any) -> Any:
        for name in wanted() if get_ep_group().rank_in_group == 1 else ():
            os.kill(os.getpid(), signal.Signals[name])
        return exchange(self, mine)

    dispatch_hook.MappedLayer.__call__, dispatch_hook.choose, GroupExchange.__call__ = seen, chosen, struck
