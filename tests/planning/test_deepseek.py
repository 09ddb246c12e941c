"""The vanilla policy against a slow reference of DeepSeek's algorithm, and against vLLM's own code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError
from eplb_plugin.planning.deepseek import rebalance_experts
from eplb_plugin.planning.score import balancedness
from strategies import QUICK


def pack_slowly(weights: list[float], packs: int) -> list[list[int]]:
    """Items of every pack: heaviest first, each into the lightest pack with room."""
    size = len(weights) // packs
    if size == 1:
        return [[item] for item in range(packs)]
    held: list[list[int]] = [[] for _ in range(packs)]
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        room = [p for p in range(packs) if len(held[p]) < size]
        held[min(room, key=lambda p: sum(weights[i] for i in held[p]))].append(item)
    return held


def layer_slowly(weights: list[float], slots: int, groups: int, nodes: int, gpus: int) -> list[int]:
    if groups % nodes:
        groups = nodes = 1
    size = len(weights) // groups
    totals = [sum(weights[g * size : (g + 1) * size]) for g in range(groups)]
    phy2log: list[int] = []
    for its_groups in pack_slowly(totals, nodes):
        experts = [g * size + i for g in its_groups for i in range(size)]
        replicas = list(experts)
        while len(replicas) < slots // nodes:
            replicas.append(max(experts, key=lambda e: weights[e] / replicas.count(e)))
        per_copy = [weights[e] / replicas.count(e) for e in replicas]
        phy2log += [replicas[r] for gpu in pack_slowly(per_copy, gpus // nodes) for r in gpu]
    return phy2log


def rank_balance(load, phy2log, gpus: int) -> float:
    rank_load = []
    for weights, slots in zip(load, phy2log, strict=True):
        copies = np.bincount(slots, minlength=len(weights))
        rank_load.append((weights / copies)[slots].reshape(gpus, -1).sum(1))
    return balancedness(rank_load)


def test_groups_that_do_not_divide_onto_nodes_are_left_aside():
    """As the engines do, which then ask nothing of the groups: 4 experts are no multiple of these 3."""
    phy2log, log2phy, counts = rebalance_experts(np.array([[10, 20, 30, 40]]), 8, 3, 2, 4)
    assert phy2log.tolist() == [layer_slowly([10, 20, 30, 40], 8, 1, 1, 4)]
    assert log2phy.shape == (1, 4, counts.max())


SIZES = [  # experts, slots, groups, nodes, gpus
    (16, 24, 4, 2, 8), (32, 40, 8, 4, 8), (32, 36, 1, 2, 4), (32, 36, 1, 1, 2), (64, 72, 8, 4, 24), (64, 64, 4, 8, 8),
    (24, 36, 6, 3, 9), (12, 24, 3, 3, 24),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_slow_reference(size):
    experts, slots, groups, nodes, gpus = size
    load = np.random.default_rng(1).permuted(np.arange(1, 1 + 5 * experts * 7, 7, dtype=float).reshape(5, -1), axis=1)
    load = (load**1.3).round()  # distinct, and float32-exact
    phy2log, log2phy, counts = rebalance_experts(load, slots, groups, nodes, gpus)
    assert phy2log.tolist() == [layer_slowly(list(row), slots, groups, nodes, gpus) for row in load]
    assert log2phy.shape == (5, experts, counts.max())
    for layer in range(5):
        assert counts[layer].tolist() == np.bincount(phy2log[layer], minlength=experts).tolist()
        for expert in range(experts):
            row = log2phy[layer, expert]
            assert (row[counts[layer, expert] :] == -1).all()
            assert sorted(row[: counts[layer, expert]]) == np.flatnonzero(phy2log[layer] == expert).tolist()


@QUICK
@given(st.sampled_from(SIZES), st.integers(0, 2**32 - 1))
def test_equals_vllm(size, seed: int):
    torch = pytest.importorskip("torch")
    default = pytest.importorskip("vllm.distributed.eplb.policy.default")
    experts, slots, groups, nodes, gpus = size
    load = np.random.default_rng(seed).lognormal(5, 1, (3, experts))
    theirs = default.DefaultEplbPolicy.rebalance_experts(torch.from_numpy(load), slots, groups, nodes, gpus)
    ours, log2phy, counts = rebalance_experts(torch.from_numpy(load), slots, groups, nodes, gpus)
    assert isinstance(ours, torch.Tensor)
    assert ours.dtype == log2phy.dtype == counts.dtype == torch.int64
    assert rank_balance(load, ours.numpy(), gpus) == pytest.approx(rank_balance(load, theirs.numpy(), gpus), abs=1e-6)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((np.ones(4), 8, 1, 1, 2), "weight"),
        ((np.ones((1, 4)), 3, 1, 1, 3), "num_replicas"),
        ((np.ones((1, 4)), 8, 3, 1, 2), "group"),
        ((np.ones((1, 4)), 8, 4, 4, 2), "num_gpus"),
        ((np.array([[1.0, np.nan, 1.0, 1.0]]), 8, 1, 1, 2), "weight"),
        ((np.ones((1, 4)), 8, 1, 1, 3), "num_replicas"),
        ((np.ones((1, 4)), 8, 1, 0, 2), "num_nodes"),
    ],
)
def test_bad_input_is_one_line(arguments, word):
    with pytest.raises(PluginError, match=word) as caught:
        rebalance_experts(*arguments)
    assert "\n" not in str(caught.value)
