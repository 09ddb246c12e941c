"""Faults for tests on a real server: a vLLM plugin of its own, found through PYTHONPATH, steered by a control file.

EPLB_FAULTS names the file; the words in it are read each time a fault could strike:
planner = the planner raises; digest = rank 1 receives a damaged plan; reading = rank 1 cannot read what it is to
send; row = rank 1 receives another expert's row; signature (at start) = a hooked function differs;
owners = odd ranks make tables as if they alone routed their tokens. EPLB_PROOFS names a folder for `eplb_proofs.py`,
EPLB_EXACT one for `eplb_exact.py`, EPLB_PRESENT_SECONDS how long a rank waits for word from the others at the start.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eplb_triton
from eplb_fault_switch import CONTROL, failing, wanted


def register() -> None:
    if CONTROL not in os.environ:
        return
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if "EPLB_PRESENT_SECONDS" in os.environ:
        from eplb_plugin.engines.startup_agreement import all_present

        all_present.__defaults__ = (float(os.environ["EPLB_PRESENT_SECONDS"]),)
    if "signature" in wanted():
        EplbState.step = lambda self, is_dummy=False, renamed=False: None
    original = WorkerWrapperBase.init_device

    @functools.wraps(original)
    def init_device(self: Any) -> Any:
        # not before: vLLM on CPU cannot set itself up once numba, which the planner needs, is imported
        import eplb_exact
        from vllm.distributed.parallel_state import get_ep_group

        from eplb_plugin.engines import device_tables
        from eplb_plugin.engines.vllm import dispatch_hook
        from eplb_plugin.migration.transfer import Transfer
        from eplb_plugin.runtime import agreement, proposal

        device_tables.hashed_maps = _parting(device_tables.hashed_maps)
        if "EPLB_PROOFS" in os.environ:
            import eplb_proofs

            eplb_proofs.install(Path(os.environ["EPLB_PROOFS"]))
        eplb_exact.install(dispatch_hook.MappedLayer, lambda: get_ep_group().rank_in_group)
        eplb_triton.install()
        proposal.plan_for = failing(proposal.plan_for)
        agreement.broadcast = _damaging(agreement.broadcast)
        Transfer._pack = _unreadable(Transfer._pack)
        Transfer._verify = _misled(Transfer._verify)
        return original(self)

    WorkerWrapperBase.init_device = init_device


def _parting(hashed_maps: Callable[..., Any]) -> Callable[..., Any]:
    def parting(plan: Any, owners: list[int], *args: Any) -> Any:
        from vllm.distributed.parallel_state import get_ep_group

        rank = get_ep_group().rank_in_group
        return hashed_maps(plan, [rank] if "owners" in wanted() and rank % 2 else owners, *args)

    return parting


def _damaging(broadcast: Callable[..., bytes | None]) -> Callable[..., bytes | None]:
    def damaging(message: bytes | None, group: Any) -> bytes | None:
        received = broadcast(message, group)
        if received is not None and "digest" in wanted() and group.rank() == 1:
            return received[:-1] + bytes([received[-1] ^ 1])
        return received

    return damaging


def _unreadable(pack: Callable[..., None]) -> Callable[..., None]:
    def failing(self: Any, *args: Any) -> None:
        if "reading" in wanted() and self.wires.rank == 1:
            raise RuntimeError("a fault was injected into reading")
        pack(self, *args)

    return failing


def _misled(verify: Callable[..., None]) -> Callable[..., None]:
    def misled(self: Any, errand: Any, rows: Any, *args: Any) -> None:
        if "row" in wanted() and self.wires.rank == 1 and len(rows) > 1 and len(errand.received):  # the last ones
            rows[-1] = rows[-2].clone()
        verify(self, errand, rows, *args)

    return misled
