"""Tokens with topics on three nodes, and copies of their experts laid out anyhow."""

from __future__ import annotations

import numpy as np

from eplb_plugin.planning.sample import Tokens
from eplb_plugin.planning.traffic.fixed_rules import Cluster

NODES, EXPERTS, SLOTS = 3, 12, 8
CLUSTER = Cluster(np.repeat(np.arange(NODES, dtype=np.int32), 2), NODES, SLOTS // 2, False)


def some_tokens(seed: int, count: int = 400) -> Tokens:
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 4, count)
    wanted = rng.random((count, EXPERTS)) + (np.arange(EXPERTS) % 4 == topic[:, None]) * 0.5
    rows = np.argsort(-wanted, axis=1)[:, :3].astype(np.int16)
    return Tokens(rows, rng.integers(0, 2 * NODES, count).astype(np.int32), rng.integers(0, 1 << 30, count))


def some_copies(seed: int):
    """[E, nodes] every expert once, and the spare slots anyhow."""
    rng = np.random.default_rng([seed, 1])
    copies = np.zeros((EXPERTS, NODES), np.int32)
    copies[np.arange(EXPERTS), rng.permutation(EXPERTS) % NODES] = 1
    for node in range(NODES):
        spare = rng.permutation(np.flatnonzero(copies[:, node] == 0))[: SLOTS - copies[:, node].sum()]
        copies[spare, node] = 1
    return copies


def check_slots(copies) -> None:
    assert copies.sum(axis=0).tolist() == [SLOTS] * NODES
    assert copies.sum(axis=1).min() >= 1
    assert copies.min() >= 0
