"""Turning the plugin on in a worker: everything that can be refused is refused here, before the model is loaded."""

from __future__ import annotations

import logging
from typing import Any

from vllm.distributed.parallel_state import get_eplb_group
from vllm.model_executor.model_loader.utils import get_model_cls

from ...settings.config import PluginConfig
from .. import hooks
from ..attributes import refuse_missing
from ..releases import VLLM
from ..startup_agreement import all_present
from ..startup_checks import log_through, slots_for
from .lent_eplb import REDUNDANT, refuse_redundant
from .reads import PEO_READS, READS
from .state import Active, set_active
from .support import refuse_moving_memory, refuse_unsuited
from .worker_hooks import WORKER_HOOKS, warm_up_hook


def activate(config: PluginConfig, vllm_config: Any) -> None:
    """Check the engine's configuration, apply the runtime hooks, hand the settings to vLLM's own EPLB config.

    Raises PluginError, before anything is touched, where engine and settings do not fit.
    """
    parallel = vllm_config.parallel_config
    refuse_unsuited(
        config,
        enable_eplb=parallel.enable_eplb,
        elastic=parallel.enable_elastic_ep,
        micro_batches=parallel.use_ubatching,
        context_parallel=parallel.prefill_context_parallel_size > 1,
    )
    refuse_moving_memory(vllm_config)
    ep_size = parallel.tensor_parallel_size * parallel.data_parallel_size * parallel.prefill_context_parallel_size
    redundant = parallel.eplb_config.num_redundant_experts
    slots_per_rank = slots_for(vllm_config.model_config.get_num_experts(), redundant, ep_size, config, REDUNDANT)
    config.topology_for(ep_size, slots_per_rank)
    reads = READS
    rows = tuple(dict.fromkeys((*WORKER_HOOKS, warm_up_hook(parallel.worker_cls))))
    if config.peo is not None:
        from . import peo  # without PEO, nothing that it hooks has to be there

        peo.refuse_unsuited(parallel)
        peo.set_peo(config.peo)
        rows += peo.PEO
        reads = {**READS, **PEO_READS}
    logger = log_through(logging.getLogger("vllm"), config.logging.level)
    if parallel.rank == 0 and parallel.data_parallel_rank == 0:
        VLLM.warn_untested(logger)
    refuse_missing(reads)
    hooks.apply(rows)
    if config.window_size is not None:
        parallel.eplb_config.window_size = config.window_size
    if config.step_interval is not None:
        parallel.eplb_config.step_interval = config.step_interval
    set_active(Active(config, vllm_config))


def confirm(vllm_config: Any) -> None:
    """Collective, once the worker has its device and groups and before it loads its model.

    Raises PluginError for redundant experts of a model that vLLM gives no EPLB, and where other ranks of the EP group
    run without the plugin.
    """
    redundant = vllm_config.parallel_config.eplb_config.num_redundant_experts
    refuse_redundant(get_model_cls(vllm_config.model_config), redundant)
    all_present(get_eplb_group().cpu_group)
