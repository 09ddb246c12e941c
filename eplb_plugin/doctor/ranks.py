"""The checks that take several GPUs, a process each, under torchrun. One rank's failure ends all, in one line."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import mismatch
from .agreement import VOTES, WINDOWS
from .checks import Check, Result, run_checks
from .environment import environment
from .groups import PATIENCE
from .memory import MEMORY
from .moves import MOVES
from .report import Report
from .site import Site
from .waits import WAIT_COSTS

CHECKS: tuple[Check[Site], ...] = (MOVES, VOTES, WINDOWS, WAIT_COSTS, MEMORY)
COMMAND = "torchrun --nproc-per-node N -m eplb_plugin.doctor"
_FAILED, _SAID = "failed", "said"  # keys of the store
GRACE = timedelta(seconds=20)  # for rank 0 to say what another rank found


def local_rank() -> int:
    """Raises PluginError in a process that torchrun did not start."""
    if "LOCAL_RANK" not in os.environ:
        raise mismatch("doctor", found="no LOCAL_RANK", expected="a process of torchrun", fix=COMMAND)
    return int(os.environ["LOCAL_RANK"])


def examine(site: Site, file: Path | None = None, checks: Sequence[Check[Site]] = CHECKS) -> Report:
    """Collective over the ranks of torchrun. Rank 0 alone shows and writes. Does not return if a check fails anywhere.

    Raises PluginError, on every rank, if they do not run the same software.
    """
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    prefixed = PrefixStore("doctor", store)
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=size, timeout=PATIENCE)
    here = environment()
    refuse_unequal(here)
    names = [check.name for check in checks]
    report = Report(f"doctor on {size} ranks", here, names, file if rank == 0 else None, quiet=rank > 0)
    bulletin = Bulletin(store.clone(), rank, report)
    report.begin()
    for result in run_checks(checks, site):
        if result.status == "failed":
            bulletin.post(result)
        report.add(result)
        report.begin()
    dist.barrier()  # nobody leaves while another rank may still fail
    bulletin.close()
    dist.destroy_process_group()
    return report


def refuse_unequal(here: dict[str, Any]) -> None:
    """Collective. Raises PluginError if a rank's versions are not those of rank 0."""
    found: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, {name: here[name] for name in ("eplb_plugin", "torch", "cuda", "nccl", "packages")})
    for rank, other in enumerate(found):
        for name, value in other.items():
            if value != found[0][name]:
                fix = "install the same on every node"
                raise mismatch(f"{name} of rank {rank}", found=value, expected=f"{found[0][name]}, as rank 0", fix=fix)


class Bulletin:
    """Where a rank says that it failed. Others may wait for it in a collective: so a thread of each looks, and ends it.

    Rank 0 says what it was, in one line and in the report; the others end after it.
    """

    def __init__(self, store: Store, rank: int, report: Report) -> None:
        self._store, self._rank, self._report = store, rank, report
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def post(self, result: Result) -> NoReturn:
        """Ends the process, as it does all others. The first failure is the one that is told."""
        told = replace(result, detail=f"rank {self._rank}: {result.detail}")
        self._store.compare_set(_FAILED, "", json.dumps(asdict(told)))
        self._thread.join()
        raise SystemExit(1)  # not reached: the thread ends the process

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if self._store.check([_FAILED]):
                self._end()

    def _end(self) -> NoReturn:
        if self._rank == 0:
            result = Result(**json.loads(self._store.get(_FAILED)))
            self._report.add(result)
            self._report.show()
            print(f"eplb-plugin: {result.name}: {result.detail}", file=sys.stderr, flush=True)
            self._store.set(_SAID, "")
        else:
            self._store.wait([_SAID], GRACE)
        sys.stdout.flush()
        os._exit(1)
