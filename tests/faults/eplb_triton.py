"""The plugin's Triton kernel in a server on a CPU: its tensors take the way of a GPU's, into Triton's interpreter.

Installed in the workers where EPLB_CPU_TRITON is set; see `server_plugins.TRITON`.
"""

from __future__ import annotations

import logging
import os
from typing import Any

SWITCH = "EPLB_CPU_TRITON"
_log = logging.getLogger("eplb_plugin")


def install() -> None:
    if SWITCH not in os.environ:
        return
    from eplb_plugin.dispatch import kernels, triton_kernels

    launch, seen = triton_kernels.launch, set()

    def launched(ids: Any, slots: Any, *args: Any, **tables: Any) -> None:
        launch(ids, slots, *args, **tables)
        task = next((name for name, table in tables.items() if table is not None), "record")
        if task not in seen:
            seen.add(task)
            _log.info("launched by Triton: %s", task)

    triton_kernels.launch = launched
    kernels.launches = lambda ids: True
