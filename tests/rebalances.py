"""One rebalance of a small model by the Rebalancer, in every process of a group."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Policy
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.settings.config import PluginConfig
from eplb_plugin.topology import Topology
from recorded import route_layer

LAYERS, EXPERTS, SLOTS, TOP_K, TOKENS = 2, 16, 24, 2, 96
LAYER_IDS = [1, 2]
OLD = linear_placement(LAYERS, EXPERTS, SLOTS).phy2log
POPULARITY = 1.0 / np.arange(1, EXPERTS + 1)  # expert 0 is the busiest by far

Result = tuple[np.ndarray, list[tuple[str, str]]]


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def new_entry(policy: Policy = "affinity", draft: bool = False) -> ModelEntry:
    ranks = dist.get_world_size()
    topology = Topology(2, ranks // 2, SLOTS // ranks)
    recorder = None if draft else Recorder(LAYERS, EXPERTS, TOP_K, TOKENS, 256, torch.device("cpu"))
    return ModelEntry("model", topology, policy, "hash", EXPERTS, 1, LAYER_IDS, recorder, expert_bytes=1000)


def routed(rank: int) -> list[np.ndarray]:
    """What a rank's tokens select: per layer [tokens, k]."""
    random = np.random.default_rng(rank)
    noise = [random.exponential(size=(TOKENS, EXPERTS)) / np.roll(POPULARITY, layer) for layer in range(LAYERS)]
    return [np.argsort(one, axis=1)[:, :TOP_K].copy() for one in noise]


def record(entry: ModelEntry, tokens: int = TOKENS) -> None:
    assert entry.recorder is not None
    entry.recorder.expect([tokens])
    for layer, ids in enumerate(routed(dist.get_rank())):
        route_layer(entry.recorder, layer, ids, tokens)
    entry.recorder.fold()


def rebalance(
    spoil: Callable[[int], None] | None = None,
    tokens: int = TOKENS,
    policy: Policy = "affinity",
    config: PluginConfig | None = None,
) -> Result:
    """On every rank: record, optionally spoil something, decide; the placement and what was logged."""
    rank, log = dist.get_rank(), Log()
    rebalancer, entry = Rebalancer(config or PluginConfig()), new_entry(policy)
    rebalancer.add("key", entry, planning_rank=rank == 0)
    logger = logging.getLogger("eplb_plugin")
    logger.addHandler(log)
    logger.setLevel("INFO")
    record(entry, tokens)
    if spoil is not None:
        spoil(rank)
    rebalancer.observe("key", dist.group.WORLD)
    log.lines.clear()  # what `add` said
    plan = rebalancer.decide("key", OLD.copy(), dist.group.WORLD)
    return plan.placement.phy2log, log.lines
