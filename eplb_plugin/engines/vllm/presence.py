"""The engine's look at its workers: settings were given, so the plugin is active in every one, or the start ends.

What a worker would refuse it refuses itself. This is for workers that run without the plugin: other nodes may have
other packages or variables, and a worker without the plugin says nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from ...errors import mismatch
from ...runtime.agreement import reason
from ..startup_agreement import INSTALL
from ..startup_checks import log_through
from .state import is_active


def refuse_inactive(executor: Any, level: str) -> None:
    """Asks every worker of vLLM's Executor. Raises PluginError unless the plugin is active in all of them."""
    try:
        answers: list[bool] = executor.collective_rpc(is_active)
    except Exception as error:  # the package is not there, so its function cannot be unpickled
        found = f"a worker that does not know it ({reason(error)})"
    else:
        if all(answers):
            logger = log_through(logging.getLogger("vllm"), level)
            logger.info("eplb_plugin is active in each of %d workers", len(answers))
            return
        found = f"{answers.count(False)} of {len(answers)} workers without it"
    raise mismatch("plugin", found=found, expected="active in every worker", fix=INSTALL)
