"""One engine's environment: imports it once, then forks the ranks, and passes requests (a JSON line each) to them.

{"row": name, "folder": …} makes every arm; {"run": arm, "pair": name, "plan": bool} -> figures of every rank.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .arms import ARMS
from .rows import RANKS, ROWS, save

IMPORTS = {
    "vllm": ("vllm.distributed.eplb.eplb_state", "eplb_plugin.migration.shuffle"),
    "sglang": ("sglang.srt.eplb.expert_location_updater",),
}


def main() -> None:
    engine = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        for module in IMPORTS[engine]:
            importlib.import_module(module)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    answer(ready=True)
    ranks: Ranks | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "row" in request:
                if ranks is not None:
                    ranks.close()
                if engine == "vllm":
                    save(ROWS[request["row"]], Path(request["folder"]))
                ranks = Ranks(engine, request["row"], request["folder"])
                answer(arms=list(ARMS[engine]))
            else:
                assert ranks is not None
                answer(ranks=ranks.ask(request))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}".splitlines()[0])
    if ranks is not None:
        ranks.close()


class Ranks:
    """The processes of one row."""

    def __init__(self, engine: str, row: str, folder: str) -> None:
        context = multiprocessing.get_context("fork")
        store = f"{folder}/store of {engine}, {row.partition(chr(58))[0]}"
        pipes = [context.Pipe() for _ in range(RANKS)]
        self.ends = [end for end, _ in pipes]
        self.processes = [
            context.Process(target=_rank, args=(rank, store, engine, row, folder, end))
            for rank, (_, end) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        for _, end in pipes:
            end.close()
        self._answers()

    def ask(self, request: dict[str, Any]) -> list[Any]:
        for end in self.ends:
            end.send(request)
        return self._answers()

    def _answers(self) -> list[Any]:
        found = [end.recv() for end in self.ends]
        for one in found:
            if "error" in one:
                raise RuntimeError(one["error"])
        return found

    def close(self) -> None:
        for end, process in zip(self.ends, self.processes, strict=True):
            end.send(None)
            process.join()


def _rank(rank: int, store: str, engine: str, name: str, folder: str, end: Connection) -> None:
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
        )
        made = {arm: make(ROWS[name]) for arm, make in ARMS[engine].items()}
        end.send({})
        placed = np.load(f"{folder}/placements.npz")
        while (request := end.recv()) is not None:
            old, new = (placed[one] for one in request["pair"])
            dist.barrier()
            arm = made[request["run"]]
            end.send({"seconds": arm.plan(old, new)} if request["plan"] else arm.run(old, new))
    except Exception as error:
        end.send({"error": f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0]})
    os._exit(0)


if __name__ == "__main__":
    main()
