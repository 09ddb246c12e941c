"""Faults for tests on a real server: an SGLang plugin of its own, found through PYTHONPATH, steered by a control file.

EPLB_FAULTS names the file; the words in it are read each time a fault could strike:
planner = the planner raises; row = a row that rank 1 sends is damaged after it was sealed. EPLB_EXACT names a folder
for `eplb_exact.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import eplb_exact
import eplb_triton
from eplb_fault_switch import CONTROL, failing, wanted
from sglang.srt.plugins.hook_registry import HookRegistry, HookType


def register() -> None:
    if CONTROL in os.environ:
        target = "sglang.srt.eplb.expert_location.ExpertLocationMetadata.init_trivial"  # called in schedulers only
        HookRegistry.register(target, _install, HookType.AROUND)


def _install(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    import torch.distributed as dist

    from eplb_plugin.engines.sglang.exact import EvenedLayer
    from eplb_plugin.migration import transfer
    from eplb_plugin.runtime import proposal

    eplb_triton.install()
    eplb_exact.install(EvenedLayer, dist.get_rank)
    proposal.plan_for = failing(proposal.plan_for)
    transfer.seal = _damaging(transfer.seal)
    return original(*args, **kwargs)


def _damaging(seal: Callable[..., None]) -> Callable[..., None]:
    def damaging(rows: Any, identity: Any) -> None:
        import torch.distributed as dist

        seal(rows, identity)
        if "row" in wanted() and dist.get_rank() == 1:
            rows[0, 5] ^= 1

    return damaging
