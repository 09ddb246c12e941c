"""A layer's step under `exact`, and what ranks tell each other of it: counts of their batches, one row per token-owner
group.

It runs where the forward pass does, once a layer, on every rank or on none: also inside a captured graph, and with the
dummy batches of ranks that are idle.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from ..dispatch.buffers import Counters
from ..dispatch.exact.kernels import choose, count
from ..dispatch.exact.tables import ExactLayer
from ..migration.limits import Budget
from ..migration.shuffle import EXIT_CODE

logger = logging.getLogger("eplb_plugin")
_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from PyTorch 2.13 on
Exchange = Callable[[torch.Tensor], torch.Tensor]  # own counts: [payload] int32 -> [sources, payload] of all


def no_exchange(mine: torch.Tensor) -> torch.Tensor:
    """Where every rank routes every token: each has counted the whole step."""
    return mine[None]


class GroupExchange:
    """One all-gather. group: the EP group's, of the device that counts are on; owner_group_size: consecutive ranks that
    route the same tokens, of which the first speaks.

    A rank that does not answer ends the others: there is no other way to serve the step, and an engine that catches
    exceptions would wait for it. seconds: that it may take on a CPU. A GPU's host does not wait; there the group's own
    limit holds.
    """

    def __init__(self, group: dist.ProcessGroup, owner_group_size: int, seconds: float) -> None:
        self._group, self._together, self._patience = group, owner_group_size, timedelta(seconds=seconds)
        self._ranks = dist.get_world_size(group)

    def __call__(self, mine: torch.Tensor) -> torch.Tensor:
        """Collective."""
        told = mine.new_empty(self._ranks, len(mine))
        try:
            if mine.device.type == "cpu":
                _gather(told, mine[None], self._group, async_op=True).wait(self._patience)
            else:
                _gather(told, mine[None], self._group)
        except RuntimeError as error:
            rank, reason = dist.get_rank(self._group), " ".join(str(error).split())
            logger.critical("exchange of counts: a rank ended or does not answer, rank %d ends: %s", rank, reason)
            logging.shutdown()
            os._exit(EXIT_CODE)
        return told if self._together == 1 else told[:: self._together].contiguous()


def exchange_among(group: dist.ProcessGroup, owner_group_size: int, vote_seconds: float | None) -> Exchange:
    """group: see GroupExchange; vote_seconds: the setting, how long a rank is waited for."""
    if owner_group_size == dist.get_world_size(group):
        return no_exchange
    return GroupExchange(group, owner_group_size, vote_seconds or Budget.vote_seconds)


class Exact(NamedTuple):
    """How one layer evens large steps out. min_tokens: of the largest batch, from which a step is large."""

    layer: ExactLayer
    exchange: Exchange
    min_tokens: int

    def map(self, ids: torch.Tensor, counters: Counters) -> torch.Tensor:
        """Of a large step, and so a collective where ranks exchange. -> [T, k] slots."""
        return choose(ids, self.layer, self.exchange(count(ids, self.layer)), counters)
