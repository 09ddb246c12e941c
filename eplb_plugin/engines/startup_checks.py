"""What an adapter checks and sets up before a model is loaded, whatever the engine."""

from __future__ import annotations

import logging

from ..errors import mismatch
from ..settings.config import PluginConfig


def slots_for(num_experts: int, redundant: int, ep_size: int, config: PluginConfig, flag: str) -> int:
    """Expert slots per rank and layer; `flag` is the engine's that sets the redundant ones.

    Raises PluginError where the slots do not divide, naming what would.
    """
    wanted = config.num_redundant_experts
    if wanted is not None and wanted != redundant:
        fix = f"start the server with {flag} {wanted}, or correct the file"
        raise mismatch("num_redundant_experts", found=f"{redundant} in the engine", expected=wanted, fix=fix)
    slots = num_experts + redundant
    if slots % ep_size:
        below, above = redundant - slots % ep_size, redundant + ep_size - slots % ep_size
        near = " or ".join(str(value) for value in (below, above) if value >= 0)
        raise mismatch(
            "num_redundant_experts",
            found=f"{num_experts} + {redundant} slots on {ep_size} ranks",
            expected="the same number of slots on every rank",
            fix=f"{flag} {near}",
        )
    return slots // ep_size


def log_through(engine: logging.Logger, level: str) -> logging.Logger:
    """Our lines appear where the engine's do and in its format; without handlers of its own, where the root's do."""
    logger = logging.getLogger("eplb_plugin")
    logger.handlers = list(engine.handlers)
    logger.propagate = not logger.handlers
    logger.setLevel(level.upper())
    return logger
