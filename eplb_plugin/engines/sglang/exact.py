"""`exact` in SGLang: what maps a layer's ids where it is on, and the number by which all ranks decide alike."""

from __future__ import annotations

import torch
from sglang.srt.distributed.parallel_state import get_moe_ep_group
from sglang.srt.layers.dp_attention import get_dp_global_num_tokens, get_is_extend_in_batch

from ...dispatch.buffers import Counters, LayerTables
from ...dispatch.kernels import cover, look_up
from ...dispatch.torch_ops import key_of
from ...settings.config import PluginConfig
from ..device_tables import DispatchTables
from ..exchange import Exact, exchange_among, no_exchange


class EvenedLayer:
    """Of one layer. tables: what small steps follow; shared: every rank routes every token."""

    def __init__(self, exact: Exact, tables: torch.Tensor | LayerTables, shared: bool) -> None:
        self.exact, self.tables, self._shared = exact, tables, shared

    def __call__(self, ids: torch.Tensor, counters: Counters) -> torch.Tensor:
        if largest_batch(ids, self._shared) >= self.exact.min_tokens:
            return self.exact.map(ids, counters)
        if isinstance(self.tables, LayerTables):
            return cover(ids, self.tables, counters)
        return look_up(ids, self.tables, counters)


def evened_layers(tables: DispatchTables, config: PluginConfig, owner_group_size: int) -> list[torch.Tensor]:
    """Collective: the group's first exchange takes its memory now. -> the key of every row, see `Mapped.evened`."""
    assert tables.exact is not None
    assert config.exact is not None
    group, device = get_moe_ep_group().device_group, tables.rows.device
    exchange = exchange_among(group, owner_group_size, config.migration.vote_seconds)
    exchange(torch.zeros(tables.exact.payload, dtype=torch.int32, device=device))
    keys = []
    for row in range(len(tables.rows)):
        exact = Exact(tables.exact.layer(row), exchange, config.exact.min_tokens)
        keys.append(key_of(EvenedLayer(exact, tables.layer(row), shared=exchange is no_exchange), device))
    return keys


def largest_batch(ids: torch.Tensor, shared: bool) -> int:
    """Tokens of the largest batch that an attention rank has in this step, padding too: the same on every rank, idle
    ones too, and on the host.

    Where every rank routes every token, those here; a captured graph has one size, so that it holds for its replays.
    Else what SGLang has told all ranks, if any of them has a prompt, which it tells as well; in other steps 0, because
    ranks may replay graphs of different sizes then, which were captured by one of them.
    """
    if shared:
        return len(ids)
    told: list[int] | None = get_dp_global_num_tokens()
    return max(told) if told and get_is_extend_in_batch() else 0
