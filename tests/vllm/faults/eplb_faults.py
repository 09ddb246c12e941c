"""Faults for tests on a real server: a vLLM plugin of its own, found through PYTHONPATH, steered by a control file.

EPLB_FAULTS names the file; the words in it are read each time a fault could strike:
planner = the planner raises; digest = rank 1 receives a damaged plan; signature (at start) = a hooked function differs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTROL = "EPLB_FAULTS"


def wanted() -> set[str]:
    file = Path(os.environ[CONTROL])
    return set(file.read_text().split()) if file.exists() else set()


def register() -> None:
    if CONTROL not in os.environ:
        return
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if "signature" in wanted():
        EplbState.step = lambda self, is_dummy=False, renamed=False: None
    original = WorkerWrapperBase.init_device

    @functools.wraps(original)
    def init_device(self: Any) -> Any:
        # not before: vLLM on CPU cannot set itself up once numba, which the planner needs, is imported
        from eplb_plugin import controller

        controller.plan = _failing(controller.plan)
        controller._broadcast = _damaging(controller._broadcast)
        return original(self)

    WorkerWrapperBase.init_device = init_device


def _failing(plan: Callable[..., Any]) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        if "planner" in wanted():
            raise RuntimeError("a fault was injected into the planner")
        return plan(*args, **kwargs)

    return failing


def _damaging(broadcast: Callable[..., bytes]) -> Callable[..., bytes]:
    def damaging(message: bytes, group: Any) -> bytes:
        received = broadcast(message, group)
        if "digest" in wanted() and group.rank() == 1:
            return received[:-1] + bytes([received[-1] ^ 1])
        return received

    return damaging
