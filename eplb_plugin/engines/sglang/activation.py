"""Turning the plugin on in a scheduler: everything that can be refused is refused here, before the model is loaded."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation
from sglang.srt.runtime_context import get_exec

from ...errors import mismatch
from ...plan_types import WEIGHED
from ..attributes import refuse_missing
from ..hooks import Hook
from ..releases import SGLANG
from ..settings import from_environment
from ..startup_agreement import agree_on_settings
from ..startup_checks import log_through, slots_for
from . import registry
from .adapter import Adapter
from .lent_layout import told_by_config
from .reads import PEO_READS, READS
from .state import set_adapter
from .support import Layout, refuse_unsuited
from .worker_hooks import WORKER_HOOKS

REDUNDANT = "--ep-num-redundant-experts"


def activate(model_config: Any) -> NDArray[np.int32] | None:
    """Collective over all ranks: agree on the settings, check SGLang's configuration, apply the runtime hooks.

    Returns the placement of all decoder layers to load the model by, [L, P]; None: the one that SGLang is told.
    Raises PluginError, before anything is touched, where engine and settings do not fit.
    """
    group = get_world_group()
    config, hosts = agree_on_settings(from_environment(), group.cpu_group)
    layout = Layout.resolved()
    refuse_unsuited(config, layout)
    assert layout.ep_size is not None
    experts = ModelConfigForExpertLocation.from_model_config(model_config)
    if experts is None:
        experts = told_by_config(model_config)
        if experts is None:
            expected = "a model whose class or configuration tells its expert layout"
            raise mismatch("model", found=model_config.model_path, expected=expected, fix="serve it without EPLB")
        config.dispatch_among(WEIGHED)  # its code does not tell SGLang's recorder which layer routes; we know
    redundant = get_exec().moe.ep_num_redundant_experts
    slots_per_rank = slots_for(experts.num_logical_experts, redundant, layout.ep_size, config, REDUNDANT)
    topology = config.topology_for(layout.ep_size, slots_per_rank, hosts)
    rows: tuple[Hook, ...] = WORKER_HOOKS
    reads = READS
    if config.peo is not None:
        from . import peo  # without PEO, nothing that it hooks has to be there

        peo.refuse_unsuited()
        peo.set_peo(config.peo)
        rows += peo.PEO
        reads = {**READS, **PEO_READS}
    logger = log_through(logging.getLogger("sglang"), config.logging.level)
    if group.rank_in_group == 0:
        SGLANG.warn_untested(logger)
    refuse_missing(reads)
    registry.apply(rows)
    adapter = Adapter(config, layout, topology, experts, model_config.model_path)
    set_adapter(adapter)
    return adapter.resume(group.cpu_group)
