"""Turning the plugin on in a worker: everything that can be refused is refused here, before the model is loaded."""

from __future__ import annotations

import logging
from typing import Any

from vllm.distributed.parallel_state import get_eplb_group
from vllm.model_executor.model_loader.utils import get_model_cls

from ...config import PluginConfig
from ...errors import mismatch
from .. import hooks
from ..agreement import all_present
from ..fit import log_through, slots_for
from ..releases import VLLM
from .entrance import refuse_unsuited
from .layers import refuse_without_eplb
from .runtime import RUNTIME, warm_up_hook
from .state import Active, set_active

REDUNDANT = "--eplb-config.num_redundant_experts"


def activate(config: PluginConfig, vllm_config: Any) -> None:
    """Check the engine's configuration, apply the runtime hooks, hand the settings to vLLM's own EPLB config.

    Raises PluginError, before anything is touched, where engine and settings do not fit.
    """
    parallel = vllm_config.parallel_config
    refuse_unsuited(config, enable_eplb=parallel.enable_eplb, elastic=parallel.enable_elastic_ep)
    _refuse_moving_memory(vllm_config)
    ep_size = parallel.tensor_parallel_size * parallel.data_parallel_size * parallel.prefill_context_parallel_size
    redundant = parallel.eplb_config.num_redundant_experts
    slots_per_rank = slots_for(vllm_config.model_config.get_num_experts(), redundant, ep_size, config, REDUNDANT)
    config.topology_for(ep_size, slots_per_rank)
    rows = tuple(dict.fromkeys((*RUNTIME, warm_up_hook(parallel.worker_cls))))
    if config.peo is not None:
        from . import peo  # without PEO, nothing that it hooks has to be there

        peo.refuse_unsuited(parallel)
        peo.set_peo(config.peo)
        rows += peo.PEO
    logger = log_through(logging.getLogger("vllm"), config.logging.level)
    if parallel.rank == 0 and parallel.data_parallel_rank == 0:
        VLLM.warn_untested(logger)
    hooks.apply(rows)
    if config.window_size is not None:
        parallel.eplb_config.window_size = config.window_size
    if config.step_interval is not None:
        parallel.eplb_config.step_interval = config.step_interval
    set_active(Active(config, vllm_config))


def confirm(vllm_config: Any) -> None:
    """Collective, once the worker has its device and groups and before it loads its model.

    Raises PluginError for a model without EPLB, and where other ranks of the EP group run without the plugin.
    """
    refuse_without_eplb(get_model_cls(vllm_config.model_config))
    all_present(get_eplb_group().cpu_group)


def _refuse_moving_memory(vllm_config: Any) -> None:
    """Raises PluginError where vLLM was told to do to the experts' memory what a placement does not survive."""
    if vllm_config.weight_transfer_config is not None:
        expected = "none: vLLM writes experts where they lay at the start, and they move"
        raise mismatch("weight_transfer_config", found="one", expected=expected, fix="remove the plugin's settings")
    communicator = vllm_config.parallel_config.eplb_config.communicator
    if vllm_config.model_config.enable_sleep_mode and communicator == "nixl":
        expected = "another communicator: NIXL keeps the pages that sleep mode gives away"
        fix = "add --eplb-config.communicator torch_gloo, or remove --enable-sleep-mode"
        raise mismatch("enable_sleep_mode", found="True with communicator nixl", expected=expected, fix=fix)
