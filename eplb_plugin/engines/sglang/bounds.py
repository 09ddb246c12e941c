"""What SGLang's own settings bound: what moves in a pass, how long a rank is waited for, how many rows it routes."""

from __future__ import annotations

from sglang.srt.runtime_context import get_device, get_exec, get_schedule, get_spec

from ...migration.limits import Budget
from ...settings.config import PluginConfig


def as_sglang_bounds(config: PluginConfig) -> PluginConfig:
    """SGLang's own bound on the layers of a pass, where it was given, can only lower ours; and no rank is given up
    before SGLang's watchdog would end it.
    """
    chunk = get_exec().moe.eplb_rebalance_layers_per_chunk
    bound = min(config.migration.layers_per_step, chunk or config.migration.layers_per_step)
    patience = config.migration.vote_seconds or max(Budget.vote_seconds, get_device().watchdog_timeout or 0.0)
    migration = config.migration.model_copy(update={"layers_per_step": bound, "vote_seconds": patience})
    return config.model_copy(update={"migration": migration})


def max_tokens() -> int:
    """Rows that one forward pass of a rank may route; what is above is not recorded."""
    schedule, drafted = get_schedule(), get_spec().speculative_num_draft_tokens or 1
    prefill = schedule.chunked_prefill_size or 0
    return max(prefill if prefill > 0 else schedule.max_prefill_tokens, (schedule.max_running_requests or 0) * drafted)
